"""The errors of autopeft, and the exit code that the command line gives each.

::

    AutopeftError
    ├── RequestError            2  the request is wrong; carries every fault found
    │   └── UnknownNameError    2  a name that no table knows
    ├── InfeasibleError         3  nothing in the space fits the budget
    ├── SourceError             4  the model or the data cannot be read or used
    ├── DamagedRunError         5  the run directory cannot be trusted
    ├── AllTrialsFailedError    6  every training failed
    ├── OutOfTimeError          7  the time ran out before a first full trial
    └── TrialError              -  one trial's fault; recorded with the trial, never ends a search
        └── OutOfMemoryTrialError  the device's memory did not hold this candidate
"""

from __future__ import annotations

from collections.abc import Sequence


class AutopeftError(Exception):
    """Root of all errors that autopeft raises on purpose; the message names field, value and remedy."""

    exit_code = 1


class RequestError(AutopeftError):
    """The request is wrong; `faults` lists everything found, not only the first."""

    exit_code = 2

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults: Sequence[str] = faults


class UnknownNameError(RequestError, KeyError):
    """A name that the table does not hold; the message says what exists."""

    __str__ = Exception.__str__  # KeyError would show the repr


class InfeasibleError(AutopeftError):
    """No configuration of the space fits the budget; names the smallest one."""

    exit_code = 3


class SourceError(AutopeftError):
    """The model or the data cannot be read, or cannot be trained on."""

    exit_code = 4


class DamagedRunError(AutopeftError):
    """The run directory is damaged, locked, or of another version."""

    exit_code = 5


class AllTrialsFailedError(AutopeftError):
    """Every trial failed; the message carries the first traceback."""

    exit_code = 6


class OutOfTimeError(AutopeftError):
    """The time ran out before one trial was complete."""

    exit_code = 7


class TrialError(AutopeftError):
    """One trial's fault: recorded as its reason; the search goes on."""


class OutOfMemoryTrialError(TrialError):
    """The device's memory did not hold this candidate; carries the peak seen, in bytes."""

    def __init__(self, message: str, *, peak_bytes: int) -> None:
        super().__init__(message)
        self.peak_bytes = peak_bytes
