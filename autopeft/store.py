"""The run directory: what was asked, append-only records, and the lock of its one driver.

::

    request.yaml    every field of the request
    run.json        RunInfo: anatomy, data, versions, hardware
    records.jsonl   one TrialRecord a work unit, written before the study is told; of a trial the last one counts
    finals.jsonl    one TrialRecord a line of the front's points, trained again with other seeds
    study.db        the Optuna study (rebuilt from the records if it is lost)
    data/           the rows that the search reads, tokenised
    adapters/NNNN/  the adapters of the front, in PEFT's format
    states/NNNN/    what a paused trial can go on from
    front.csv       the Pareto front
    report.html     the report
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from autopeft.errors import DamagedRunError, RequestError
from autopeft.records import SCHEMA_VERSION, RunInfo, TrialRecord
from autopeft.request import SearchRequest
from autopeft.request_fields import make_request, read_fields, write_request

_LOCK, _RECORDS, _FINALS = ".lock", "records.jsonl", "finals.jsonl"
_PREPARATION = {_LOCK, "data", "run.json", ".run.json.partial", ".request.yaml.partial"}


def adapter_dir(number: int) -> str:
    """Give the folder of a trial's adapter, relative to the run directory."""
    return f"adapters/{number:04d}"


def state_dir(number: int) -> str:
    """Give the folder of the states that a trial can go on from, relative to the run directory."""
    return f"states/{number:04d}"


class RunDirectory:
    """A run on disk. Open it as a context: one driver at a time holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: dict[int, TrialRecord] = {}
        self._finals: list[TrialRecord] = []
        self._with_adapter: set[int] = set()
        self._lock: IO[str] | None = None
        self.notes: list[str] = []

    @classmethod
    def new(cls, path: Path) -> RunDirectory:
        """Name a folder that is new or empty for a run; `make` makes it, and with `begin` it becomes a run.

        Raises:
            RequestError: If the folder holds anything.
        """
        if (path / "request.yaml").exists():
            raise RequestError(
                f"out: {path} holds a run; go on with it by `autopeft resume {path}`, or choose another --out"
            )
        found = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
        # What a driver left that was killed while it prepared a run is of no use to anybody.
        if found and not (_LOCK in found and found <= _PREPARATION):
            raise RequestError(f"out: {path} is not empty; choose another --out")
        return cls(path)

    def make(self) -> None:
        """Make the folder, empty, and take its lock.

        Raises:
            RequestError: If it cannot be written.
            DamagedRunError: If another process prepares a run in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
        except OSError as error:
            raise RequestError(f"out: cannot write {self.path}: {error.strerror}; choose another --out") from None
        shutil.rmtree(self.path / "data", ignore_errors=True)

    @classmethod
    def existing(cls, path: Path) -> RunDirectory:
        """Name a run that is there.

        Raises:
            DamagedRunError: If the folder holds no run.
        """
        if not (path / "request.yaml").is_file():
            raise DamagedRunError(f"{path} is no run directory (no request.yaml in it)")
        return cls(path)

    def __enter__(self) -> RunDirectory:
        self._take_lock()
        self._records = _last_of(_in_short(record) for record in self._read_lines(_RECORDS, repair=True))
        self._finals = _first_of(_in_short(record) for record in self._read_lines(_FINALS, repair=True))
        self._with_adapter = {n for n, record in self._records.items() if record.state != "paused"}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        """Take the lock, unless it is held already; the system gives it back when the process ends, however."""
        if self._lock is not None:
            return
        lock = (self.path / _LOCK).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise DamagedRunError(f"{self.path} is in use by another process; wait for it, or stop it") from None
        self._lock = lock

    @property
    def request(self) -> SearchRequest:
        """The request that the run was started with."""
        try:
            fields = read_fields(self.path / "request.yaml")
            # Objectives of the caller's own are known by their names alone until the caller brings them along.
            return make_request(fields, own_objectives=tuple(fields.get("objectives") or ()))
        except RequestError as error:
            raise DamagedRunError(f"{self.path / 'request.yaml'}: {error}") from error

    @property
    def records(self) -> Sequence[TrialRecord]:
        """The last record of each trial, oldest first; of an open run in short, as a driver holds them for days."""
        return list((self._records or _last_of(self._read_lines(_RECORDS, repair=False))).values())

    def record(self, number: int) -> TrialRecord | None:
        """Give the last record of a trial of an open run, in short."""
        return self._records.get(number)

    def append(self, record: TrialRecord) -> None:
        """Write the record of a trial down for good: one line, flushed to the disk."""
        self._append_line(_RECORDS, record)
        _keep(self._records, _in_short(record))
        if record.state != "paused":  # its adapter may be saved before it is recorded again
            self._with_adapter.add(record.number)

    @property
    def finals(self) -> Sequence[TrialRecord]:
        """What finalists gave that were trained again, oldest first: the trial's number, another seed."""
        return self._finals or _first_of(self._read_lines(_FINALS, repair=False))

    def append_final(self, record: TrialRecord) -> None:
        """Write down what a finalist gave."""
        self._append_line(_FINALS, record)
        self._finals.append(_in_short(record))

    def _append_line(self, name: str, record: TrialRecord) -> None:
        line = json.dumps({"schema": SCHEMA_VERSION, **record.to_dict()}, ensure_ascii=False, allow_nan=False) + "\n"
        with (self.path / name).open("ab") as file:
            # A lone surrogate, as in the name of a file, becomes its JSON escape.
            file.write(line.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())

    def _read_lines(self, name: str, *, repair: bool) -> Iterator[TrialRecord]:
        """Read a file of records; a last line that a kill cut short is dropped, any other fault is damage."""
        path = self.path / name
        if not path.exists():
            return
        data = path.read_bytes()
        whole, _, torn = data.rpartition(b"\n")
        if torn and repair:
            self.notes.append(f"{name} ended in a torn line; it was dropped, and its trial runs again")
            with path.open("r+b") as file:
                file.truncate(len(whole) + (1 if whole else 0))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                fields = json.loads(line)
                if fields["schema"] != SCHEMA_VERSION:
                    raise DamagedRunError(
                        f"{path}: line {number} has schema {fields['schema']}, this autopeft reads {SCHEMA_VERSION}; "
                        "use the version that wrote it"
                    )
                yield TrialRecord.from_dict(fields)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DamagedRunError(
                    f"{path}: line {number} is damaged ({type(error).__name__}: {error}); "
                    "restore the file, or delete the line to run its trial again"
                ) from None

    def begin(self, request: SearchRequest, info: RunInfo) -> None:
        """Write run.json, then request.yaml: with that the folder is a run that can be resumed."""
        replace_file(self.path / "run.json", json.dumps(info.to_dict(), ensure_ascii=False, indent=1))
        write_request(request, self.path / ".request.yaml.partial")
        (self.path / ".request.yaml.partial").replace(self.path / "request.yaml")

    def read_info(self) -> RunInfo:
        """Read run.json.

        Raises:
            DamagedRunError: If it cannot be read, or is of another schema.
        """
        path = self.path / "run.json"
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            info = RunInfo.from_dict({**data, "objectives": tuple(data["objectives"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedRunError(f"{path} is damaged ({error}); restore it, or start a new run") from None
        if info.schema != SCHEMA_VERSION:
            raise DamagedRunError(f"{path} has schema {info.schema}, this autopeft reads {SCHEMA_VERSION}")
        return info

    def sweep(self, numbers: Iterable[int]) -> None:
        """Once no worker is running: remove every adapter that is not one of these, half-saved ones among them."""
        kept = {Path(adapter_dir(n)).name for n in numbers}
        for folder in (self.path / "adapters").glob("*"):
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def sweep_states(self) -> None:
        """Once no worker is running: remove every state but those that paused trials can go on from."""
        paused = {state_dir(n): record for n, record in self._records.items() if record.state == "paused"}
        for folder in (self.path / "states").glob("*"):
            record = paused.get(f"states/{folder.name}")
            if record is None:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                self.keep_state(record)

    def keep_state(self, record: TrialRecord) -> None:
        """Remove the states of a recorded trial, but the one that it paused with."""
        folder = self.path / state_dir(record.number)
        if record.state != "paused":
            shutil.rmtree(folder, ignore_errors=True)
            return
        for path in folder.glob("*"):
            if path.name != f"{record.rungs[-1].step}.safetensors":
                path.unlink(missing_ok=True)

    def keep_adapters(self, numbers: Iterable[int]) -> None:
        """Remove the adapters of recorded trials that are not among these."""
        kept = set(numbers)
        for number in self._with_adapter - kept:  # each is looked at once, not at every trial's end
            if (folder := self.path / adapter_dir(number)).is_dir():
                shutil.rmtree(folder)
        self._with_adapter &= kept


def _last_of(records: Iterable[TrialRecord]) -> dict[int, TrialRecord]:
    """Give the record of each trial that counts, by its number."""
    kept: dict[int, TrialRecord] = {}
    for record in records:
        _keep(kept, record)
    return kept


def _keep(records: dict[int, TrialRecord], record: TrialRecord) -> None:
    """Take a record among those that count, oldest first.

    What a trial paused with is left behind by its next record; of two ends, as of an orphan, the first counts.
    """
    if record.number not in records or records[record.number].state == "paused":
        records.pop(record.number, None)
        records[record.number] = record


def _first_of(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Keep the first record of each training: an orphan of a killed driver may have written another."""
    kept: dict[tuple[int, int], TrialRecord] = {}
    for record in records:
        kept.setdefault((record.number, record.seed), record)
    return list(kept.values())


def _in_short(record: TrialRecord) -> TrialRecord:
    """Leave out what only the file keeps, and is most of a record: the modules of the plan, and the loss curve."""
    plan, measurement = record.plan, record.measurement
    return replace(
        record,
        plan=None if plan is None else replace(plan, sizes={}, config={}),
        measurement=None if measurement is None else replace(measurement, curve=()),
    )


def replace_file(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
