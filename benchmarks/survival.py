"""What must be true of a search that was killed and resumed, and real searches to kill; Linux only.

Shared by `kill.py`, which kills many, and by the tests, which kill two.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORKER_TITLE = "ray::ResourceTrainable"  # Tune wraps the trainable in a class of its own
_STARTED = re.compile(r"^trial (\d+) started", re.MULTILINE)
_HANDED_OUT = re.compile(r"^trial (\d+) (?:started|goes on)", re.MULTILINE)
_PATIENCE_SECONDS = 600.0


# --- processes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Process:
    """A process that cannot be mistaken for a later one of the same number."""

    pid: int
    born: str
    parent: int
    title: str

    def alive(self) -> bool:
        """Tell whether it still runs; a zombie does not."""
        now = _process(self.pid)
        return now is not None and now.born == self.born

    def kill(self) -> None:
        """Send SIGKILL, unless it is gone."""
        if self.alive():
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                return


def _process(pid: int) -> Process | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (OSError, ValueError):
        return None
    return None if stat[0] == "Z" else Process(pid, born=stat[19], parent=int(stat[1]), title=title)


def descendants(pid: int) -> list[Process]:
    """List what a process has started, and what that has started, and so on; Linux only."""
    found = [
        process for entry in Path("/proc").iterdir() if entry.name.isdigit() and (process := _process(int(entry.name)))
    ]
    family, size = {pid}, 0
    while len(family) > size:
        size = len(family)
        family |= {process.pid for process in found if process.parent in family}
    return [process for process in found if process.pid in family and process.pid != pid]


def workers_of(pid: int) -> list[Process]:
    """List the processes that train for a driver."""
    return [process for process in descendants(pid) if process.title.startswith(WORKER_TITLE)]


# --- the command line ------------------------------------------------------------------------------------------------


class Driver:
    """A real `autopeft` process, its outputs in files beside the run directory."""

    def __init__(self, *arguments: str, log: Path) -> None:
        self.log = next(path for n in itertools.count() if not (path := log.with_suffix(f".{n}.log")).exists())
        self.output = self.log.with_suffix(".json")
        self.began = time.monotonic()
        with self.log.open("wb") as errors, self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).with_name("autopeft")), *arguments, "--json"], stdout=output, stderr=errors
            )

    @property
    def seconds(self) -> float:
        """How long it has lived."""
        return time.monotonic() - self.began

    def said(self) -> str:
        """Give what it has written to its log so far."""
        return self.log.read_text(errors="replace")

    def started(self) -> list[int]:
        """Give the numbers of the trials that it has started."""
        return [int(number) for number in _STARTED.findall(self.said())]

    def handed_out(self) -> list[int]:
        """Give the numbers of the trials that it has started or gone on with, each time anew."""
        return [int(number) for number in _HANDED_OUT.findall(self.said())]

    def wait_until(self, reached: Callable[[], bool]) -> bool:
        """Wait until something is so; tells whether the process still runs then."""
        while self.process.poll() is None and not reached() and self.seconds < _PATIENCE_SECONDS:
            time.sleep(0.02)
        return self.process.poll() is None

    def await_workers(self) -> list[Process]:
        """Wait until somebody trains for it, and list them; none if it ended first."""
        found: list[Process] = []

        def are_there() -> bool:
            found.extend(workers_of(self.process.pid))
            return bool(found)

        self.wait_until(are_there)
        return found

    def end(self) -> int:
        """Wait for its end; gives its exit code."""
        return self.process.wait(_PATIENCE_SECONDS)


def start(run_dir: Path, *options: str) -> Driver:
    """Start a search."""
    return Driver("search", *options, "--out", str(run_dir), log=run_dir.with_suffix(".search"))


def go_on(run_dir: Path) -> Driver:
    """Resume a search."""
    return Driver("resume", str(run_dir), log=run_dir.with_suffix(".resume"))


# --- what must hold --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checked:
    """What a run directory was found to be, after the search was resumed to its end."""

    records_before: int
    records_after: int
    lost: int
    counted_twice: int
    faults: tuple[str, ...]


def record_lines(run_dir: Path) -> list[bytes]:
    """Give the whole lines of records.jsonl; one that was cut short is none."""
    path = run_dir / "records.jsonl"
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def check(run_dir: Path, before: Sequence[bytes], *, trials: int) -> Checked:
    """Check a finished run directory against its records at the kill.

    Args:
        before: `record_lines` at the kill.
        trials: How many trials were asked for.
    """
    after = record_lines(run_dir)
    records: list[dict[str, Any]] = [json.loads(line) for line in after]
    faults = []
    lost = [line for line in before if line not in after]
    if list(before) != after[: len(before)]:
        faults.append("the records before the kill are no beginning of those after")
    twice = repeated((record["number"], _steps_of(record)) for record in records)
    faults += [f"trial {number} is recorded twice" for number, _ in twice]
    # A trial that paused is followed by what it came to when it went on.
    last = [r for i, r in enumerate(records) if r["state"] != "paused" or r["number"] not in _numbers(records[i + 1 :])]
    same = repeated(json.dumps(record["plan"] or record["candidate"], sort_keys=True) for record in last)
    faults += [f"a configuration was counted twice: {plan[:80]}" for plan in same]
    ended = [record for record in last if record["state"] in ("complete", "paused")]
    faults += [f"trial {r['number']} is {r['state']}: {r['reason']}" for r in last if r not in ended]
    if len(ended) != trials:
        faults.append(f"{len(ended)} trials are complete or paused, not {trials}")
    again = [record["number"] for record in records if (record["measurement"] or {}).get("restarted")]
    faults += [f"the state of trial {number} was lost" for number in again]
    records = last
    faults += _study_faults(run_dir, records)
    faults += _adapter_faults(run_dir) + _state_faults(run_dir, records)
    return Checked(len(before), len(after), len(lost), len(twice) + len(same), tuple(faults))


def _steps_of(record: Mapping[str, Any]) -> int:
    """Give the steps that a trial had taken when it was recorded; -1 where it does not say."""
    return record["rungs"][-1]["step"] if record.get("rungs") else -1


def _numbers(records: Sequence[Mapping[str, Any]]) -> set[int]:
    return {record["number"] for record in records}


def repeated(values: Iterable[Any]) -> list[Any]:
    """Give the values that come more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def _study_faults(run_dir: Path, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Compare the study with the records: same numbers, same values, nothing left running but what paused."""
    import optuna

    study = optuna.load_study(study_name="autopeft", storage=f"sqlite:///{run_dir / 'study.db'}")
    names = study.metric_names or []
    told = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    paused = {record["number"]: record for record in records if record["state"] == "paused"}
    faults = [
        f"trial {t.number} is left {t.state.name} in the study"
        for t in told.values()
        if (t.state.name == "RUNNING") != (t.number in paused)
    ]
    for number in paused.keys() & told.keys():
        losses = {result["step"]: result["loss"] for result in paused[number]["rungs"]}
        if told[number].intermediate_values != losses:
            faults.append(f"trial {number} has {told[number].intermediate_values} in the study, not {losses}")
    recorded = {record["number"]: record for record in records if record["state"] == "complete"}
    complete = {number for number, trial in told.items() if trial.state.name == "COMPLETE"}
    if complete != set(recorded):
        faults.append(f"complete in the study: {sorted(complete)}, in the records: {sorted(recorded)}")
    for number in complete & set(recorded):
        values = [recorded[number]["values"][name] for name in names]
        if told[number].values != values:
            faults.append(f"trial {number} has {told[number].values} in the study, {values} in the records")
    return faults


def _adapter_faults(run_dir: Path) -> list[str]:
    """Load the adapter of every point of the front, and look for any that is left over."""
    from autopeft.finals import kept
    from autopeft.result import Result

    result = Result(run_dir)
    faults = []
    for number in result.front["trial"]:
        folder = run_dir / "adapters" / f"{number:04d}"
        try:
            _load(folder)
        except Exception as error:  # noqa: BLE001 - whatever it is, the adapter does not load
            faults.append(f"the adapter of trial {number} does not load: {type(error).__name__}: {error}")
    wanted = {f"{number:04d}" for number in kept(result.records, result.objectives)}
    left = sorted({path.name for path in (run_dir / "adapters").iterdir()} - wanted)
    return faults + [f"adapters/{name} is left over" for name in left]


def _state_faults(run_dir: Path, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Look for states that are missing, or left over."""
    wanted = {f"{r['number']:04d}/{_steps_of(r)}.safetensors" for r in records if r["state"] == "paused"}
    folder = run_dir / "states"
    found = {str(path.relative_to(folder)) for path in folder.glob("*/*")}
    return [f"states/{name} is left over" for name in sorted(found - wanted)] + [
        f"states/{name} is missing" for name in sorted(wanted - found)
    ]


def _load(folder: Path) -> None:
    import autopeft

    autopeft.load(folder)
