"""Table: a dict whose failed look-up says what exists and what was probably meant."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterable
from difflib import get_close_matches
from typing import NoReturn, TypeVar

from autopeft.errors import UnknownNameError

T = TypeVar("T")


def unknown(name: object, known: Iterable[str], *, what: str = "") -> UnknownNameError:
    """Build the error for a name that is not among the known ones.

    >>> print(unknown("loar", ["lora", "ia3"], what="method"))
    no method 'loar'; did you mean 'lora'? known: ia3, lora
    """
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UnknownNameError(f"no {what + ' ' if what else ''}{name!r}; {hint}known: {', '.join(names)}")


class Table(UserDict[str, T]):
    """A dict whose failed look-up says what exists.

    >>> Table(lora=1, vera=2)["loar"]
    Traceback (most recent call last):
    autopeft.errors.UnknownNameError: no 'loar'; did you mean 'lora'? known: lora, vera
    """

    def __missing__(self, name: str) -> NoReturn:
        raise unknown(name, self)
