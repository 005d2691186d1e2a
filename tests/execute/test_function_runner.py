from __future__ import annotations

import functools
import json
import sys
from types import ModuleType
from typing import Any

import pytest
import tiny_runner
from tiny_runner import unit

from autopeft.errors import RequestError
from autopeft.execute.function import FunctionRunner, entry_of
from autopeft.execute.protocol import resolve, run_isolated


def test_a_callable_and_its_name_do_the_same() -> None:
    by_name = run_isolated(FunctionRunner("tiny_runner:good"), [unit(1, x=2)])[0]
    by_itself = run_isolated(FunctionRunner(tiny_runner.good), [unit(1, x=2)])[0]
    assert by_name.measurement == by_itself.measurement
    assert by_name.measurement is not None
    assert by_name.measurement.quality == 10


@pytest.mark.parametrize("result", [0.5, {"quality": 0.5}, None, [1] * 1000])
def test_anything_but_a_measurement_is_a_clear_fault(result: Any) -> None:
    (outcome,) = run_isolated(FunctionRunner(lambda candidate, steps: result), [unit()])
    assert outcome.state == "failed"
    assert f"({type(result).__name__}); return autopeft.Measurement(quality=" in outcome.reason
    assert len(outcome.reason) < 250


@pytest.mark.parametrize("name", ["no_such_module:f", "tiny_runner:no_such_function", "tiny_runner:SPEC", ":", ""])
def test_a_name_that_is_no_function_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="runner: "):
        FunctionRunner(name)


def test_an_entry_leads_back_to_its_function() -> None:
    for function in (tiny_runner.good, json.dumps, tiny_runner.Runner):
        assert resolve(entry_of(function)) is function  # type: ignore[arg-type]


def test_what_another_process_cannot_import_is_refused() -> None:
    def local(candidate: Any, steps: int) -> Any: ...

    for function in (local, lambda c, s: None, functools.partial(tiny_runner.good), tiny_runner.Runner().run):
        with pytest.raises(RequestError, match=r'executor="local"'):
            entry_of(function)  # type: ignore[arg-type]


def test_a_shell_has_no_importable_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    function = functools.wraps(tiny_runner.good)(lambda candidate, steps: None)
    function.__module__ = "__main__"
    with pytest.raises(RequestError, match="cannot be imported"):
        entry_of(function)  # type: ignore[arg-type]
