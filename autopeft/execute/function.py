"""A runner made of one function of the user's: `(candidate, steps) -> Measurement`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from autopeft.candidates import Candidate
from autopeft.errors import RequestError, TrialError
from autopeft.execute.protocol import resolve
from autopeft.work import Measurement, WorkUnit

TrainFunction = Callable[[Candidate, int], Measurement]
"""Trains a candidate for a number of steps and says how good it is."""


class FunctionRunner:
    """Runs work units by calling a function with the candidate and the number of steps.

    Args:
        function: The function, or where to import it from as "module:name".

    Raises:
        RequestError: If "module:name" cannot be imported, or is not a function.
    """

    def __init__(self, function: TrainFunction | str) -> None:
        if isinstance(function, str):
            try:
                found = resolve(function)
            except (ImportError, AttributeError, ValueError) as error:
                raise RequestError(f"runner: cannot import {function!r}: {error}") from error
        else:
            found = function
        if not callable(found):
            raise RequestError(f"runner: {function!r} is a {type(found).__name__}, not a function")
        self._function: TrainFunction = found

    def run(self, unit: WorkUnit) -> Measurement:
        """Call the function.

        Raises:
            TrialError: If it returns anything but a Measurement.
        """
        result: object = self._function(unit.candidate, unit.steps)
        if not isinstance(result, Measurement):
            shown = repr(result)
            shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
            raise TrialError(
                f"the runner returned {shown} ({type(result).__name__}); "
                "return autopeft.Measurement(quality=..., trainable_params=..., memory_bytes=...)"
            )
        return result


def entry_of(function: TrainFunction) -> str:
    """Say where another process can import a function from, as "module:name".

    Raises:
        RequestError: If it cannot: a lambda, a function within a function, a method of an object, or something
            that was typed into a shell.

    >>> import json
    >>> entry_of(json.dumps)
    'json:dumps'
    """
    name = getattr(function, "__qualname__", None)
    module = getattr(function, "__module__", None)
    if not name or not module or "<" in name:
        raise _not_importable(function)
    if module == "__main__":
        module = _main_module()
        if module is None:
            raise _not_importable(function)
        return f"{module}:{name}"
    found: object = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    # A bound method has the name of the plain function; importing that would lose the object it belongs to.
    if found is not function:
        raise _not_importable(function)
    return f"{module}:{name}"


def _main_module() -> str | None:
    """Find the name under which the script that is running can be imported."""
    main = sys.modules["__main__"]
    if main.__spec__ is not None:  # python -m package.module
        return main.__spec__.name
    if (file := getattr(main, "__file__", None)) is None:  # a shell or a notebook
        return None
    script = Path(file).resolve()
    try:
        spec = importlib.util.find_spec(script.stem)
    except (ImportError, ValueError):
        return None
    return script.stem if spec and spec.origin and Path(spec.origin).resolve() == script else None


def _not_importable(function: object) -> RequestError:
    return RequestError(
        f"runner: {function!r} cannot be imported by another process, as executor 'ray' needs it; move it to the top "
        'level of a module or script file (started under `if __name__ == "__main__":`), or use executor="local"'
    )
