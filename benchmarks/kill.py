"""How much of a run survives kill -9: the driver and the workers of real searches, killed at random moments.

Each life is a search of the embedded default by the real command line. At a random moment its driver, or one of its
Ray workers, is killed; `autopeft resume` goes on until the search is done; then the run directory is checked against
what it held at the kill. Prints a table, and writes it as CSV.

    python benchmarks/kill.py --drivers 10 --workers 5 --seed 0
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

TRIALS = 8
SEARCH = ("--executor", "ray", "--workers", "2", "--trials", str(TRIALS), "--steps", "4", "--eval-rows", "20")
NO_TIME_LIMIT = ("--time", "1h")  # the default's own limit would end a search on a slow machine
WORKER_TITLE = "ray::ResourceTrainable"  # Tune wraps the trainable in a class of its own
_STARTED = re.compile(r"^trial (\d+) started", re.MULTILINE)
_MOST_RESUMES = 3
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


class Orphans(threading.Thread):
    """Watches what a killed driver left behind."""

    def __init__(self, family: Sequence[Process]) -> None:
        super().__init__(daemon=True)
        self._family = list(family)
        self._workers = [process for process in family if process.title.startswith(WORKER_TITLE)]
        self._gone_after: float | None = None
        self._ended = threading.Event()

    def run(self) -> None:
        """Note when the last worker was gone."""
        began = time.monotonic()
        while not self._ended.is_set() and any(process.alive() for process in self._workers):
            time.sleep(0.02)
        if not any(process.alive() for process in self._workers):
            self._gone_after = round(time.monotonic() - began, 2)

    def end(self) -> tuple[float | None, list[str]]:
        """Kill what is left; gives the seconds until no worker was left, and the titles of what was left now."""
        self._ended.set()
        self.join()
        left = [process for process in self._family if process.alive()]
        for process in left:
            process.kill()
        return self._gone_after if self._workers else None, sorted(process.title[:40] for process in left)


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

    def wait_until(self, seconds: float) -> bool:
        """Wait until it is so old; tells whether it still runs then."""
        while self.seconds < seconds and self.process.poll() is None:
            time.sleep(min(0.02, max(0.0, seconds - self.seconds)))
        return self.process.poll() is None

    def wait_for(self, text: str) -> bool:
        """Wait until its log holds a text; tells whether it still runs then."""
        while text not in self.said() and self.process.poll() is None and self.seconds < _PATIENCE_SECONDS:
            time.sleep(0.05)
        return self.process.poll() is None

    def end(self) -> int:
        """Wait for its end; gives its exit code."""
        return self.process.wait(_PATIENCE_SECONDS)


def start(run_dir: Path) -> Driver:
    """Start a search."""
    return Driver("search", *SEARCH, *NO_TIME_LIMIT, "--out", str(run_dir), log=run_dir.with_suffix(".search"))


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
    twice = _repeated(record["number"] for record in records)
    faults += [f"trial {number} is recorded twice" for number in twice]
    same = _repeated(json.dumps(record["plan"] or record["candidate"], sort_keys=True) for record in records)
    faults += [f"a configuration was counted twice: {plan[:80]}" for plan in same]
    complete = [record for record in records if record["state"] == "complete"]
    faults += [f"trial {r['number']} is {r['state']}: {r['reason']}" for r in records if r["state"] != "complete"]
    if len(complete) != trials:
        faults.append(f"{len(complete)} trials are complete, not {trials}")
    faults += _study_faults(run_dir, records)
    faults += _adapter_faults(run_dir)
    return Checked(len(before), len(after), len(lost), len(twice) + len(same), tuple(faults))


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _study_faults(run_dir: Path, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Compare the study with the records: same numbers, same values, nothing left running."""
    import optuna

    study = optuna.load_study(study_name="autopeft", storage=f"sqlite:///{run_dir / 'study.db'}")
    names = study.metric_names or []
    told = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    faults = [
        f"trial {t.number} is left {t.state.name} in the study" for t in told.values() if t.state.name == "RUNNING"
    ]
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
    from autopeft.result import Result

    result = Result(run_dir)
    faults = []
    for number in result.front["trial"]:
        folder = run_dir / "adapters" / f"{number:04d}"
        try:
            _load(folder)
        except Exception as error:  # noqa: BLE001 - whatever it is, the adapter does not load
            faults.append(f"the adapter of trial {number} does not load: {type(error).__name__}: {error}")
    kept = {f"{number:04d}" for number in result.front["trial"]}
    left = sorted({path.name for path in (run_dir / "adapters").iterdir()} - kept)
    return faults + [f"adapters/{name} is left over" for name in left]


def _load(folder: Path) -> None:
    import autopeft

    autopeft.load(folder)


# --- lives -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Life:
    """One search, what was killed of it and when, and what came of it."""

    killed: Literal["driver", "worker"]
    moment: float
    phase: str = ""
    before: int = 0
    after: int = 0
    lost: int = 0
    twice: int = 0
    again: int = 0
    resumes: int = 0
    workers_gone_seconds: float | None = None
    left: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def kill_driver(run_dir: Path, moment: float) -> Life:
    """Kill a search's driver at a moment of its life, resume it to its end, and check it."""
    life = Life("driver", moment)
    driver = start(run_dir)
    if not driver.wait_until(moment):
        driver.end()
        life.phase = "it had ended"
    orphans = Orphans(descendants(driver.process.pid))
    driver.process.kill()
    driver.end()
    orphans.start()
    life.moment = round(driver.seconds, 1)
    before = record_lines(run_dir)
    life.phase = life.phase or _phase(driver, run_dir, before)
    resumed = _resume_to_the_end(run_dir, life)
    _check_life(life, run_dir, before, [driver, *resumed])
    life.workers_gone_seconds, life.left = orphans.end()
    return life


def kill_worker(run_dir: Path, moment: float, *, pick: random.Random) -> Life:
    """Kill one worker of a search at a moment after its first trial began; the search itself must go on."""
    life = Life("worker", moment)
    driver = start(run_dir)
    driver.wait_for("trial 0 started")
    first = driver.seconds
    victims: list[Process] = []
    while not victims and driver.wait_until(first + moment):
        victims = workers_of(driver.process.pid)
        time.sleep(0.02)
    life.moment = round(driver.seconds, 1)
    before = record_lines(run_dir)
    if victims:
        pick.choice(victims).kill()
        life.phase = _phase(driver, run_dir, before)
    else:
        life.phase = "it had ended"
    if code := driver.end():
        life.faults.append(f"the search ended with exit code {code}: {driver.said()[-300:]}")
    resumed = _resume_to_the_end(run_dir, life)
    _check_life(life, run_dir, before, [driver, *resumed])
    return life


def _resume_to_the_end(run_dir: Path, life: Life) -> list[Driver]:
    """Resume until the search ends well; a folder that is no run yet is searched anew, as its user would."""
    drivers: list[Driver] = []
    for attempt in range(1, _MOST_RESUMES + 1):
        is_run = (run_dir / "request.yaml").exists()
        drivers.append(go_on(run_dir) if is_run else start(run_dir))
        life.resumes = attempt
        if not is_run:
            life.phase += ", started anew"
        code = drivers[-1].end()
        if code == 0:
            return drivers
        life.faults.append(f"attempt {attempt} ended with exit code {code}: {drivers[-1].said()[-300:]}")
    return drivers


def _check_life(life: Life, run_dir: Path, before: Sequence[bytes], drivers: Sequence[Driver]) -> None:
    checked = check(run_dir, before, trials=TRIALS)
    life.before, life.after = checked.records_before, checked.records_after
    life.lost, life.twice = checked.lost, checked.counted_twice
    started = [number for driver in drivers for number in driver.started()]
    life.again = len(_repeated(started))
    life.faults += checked.faults


def _phase(driver: Driver, run_dir: Path, before: Sequence[bytes]) -> str:
    if not run_dir.exists():
        return "before the run directory"
    if not (run_dir / "request.yaml").exists():
        return "preparing"
    if not driver.started():
        return "starting Ray"
    return "reporting" if len(before) >= TRIALS else f"trial {max(driver.started())} under way"


# --- the table -------------------------------------------------------------------------------------------------------


def _spread(count: int, seconds: float, chance: random.Random) -> list[float]:
    """Draw a moment in each of so many equal parts of a life."""
    return [seconds * (i + chance.random()) / count for i in range(count)]


def table(lives: Sequence[Life]) -> str:
    """Write the lives as a Markdown table."""
    head = "| killed | at (s) | moment | records before | after | lost | counted twice | run again | resumes | faults |"
    rows = [
        f"| {life.killed} | {life.moment:.1f} | {life.phase} | {life.before} | {life.after} | {life.lost} "
        f"| {life.twice} | {life.again} | {life.resumes} | {'; '.join(life.faults) or 'none'} |"
        for life in lives
    ]
    return "\n".join([head, "|---" * 10 + "|", *rows])


def write_csv(lives: Sequence[Life], path: Path) -> None:
    """Write the lives, each with the versions of what they ran on."""
    from autopeft.assembly import versions

    path.parent.mkdir(parents=True, exist_ok=True)
    on = " ".join(f"{name}={version}" for name, version in versions().items())
    rows = [
        {**asdict(life), "left": ", ".join(life.left), "faults": "; ".join(life.faults), "versions": on}
        for life in lives
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main() -> int:
    """Kill, resume, check; gives 1 if anything was found wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drivers", type=int, default=10, help="how many drivers to kill")
    parser.add_argument("--workers", type=int, default=5, help="how many workers to kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--keep", type=Path, help="folder for the run directories; by default a temporary one")
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "kill.csv")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    lives: list[Life] = []
    with tempfile.TemporaryDirectory(prefix="autopeft-kill-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        driver = start(folder / "whole")
        driver.wait_for("trial 0 started")
        first = driver.seconds
        if driver.end():
            sys.exit(f"a search that nobody killed failed: {driver.said()}")
        whole = driver.seconds
        print(f"a whole life takes {whole:.1f} s, its first trial begins at {first:.1f} s", flush=True)
        for i, moment in enumerate(_spread(options.drivers, whole, chance)):
            lives.append(kill_driver(folder / f"driver-{i}", moment))
            print(lives[-1], flush=True)
        for i, moment in enumerate(_spread(options.workers, whole - first, chance)):
            lives.append(kill_worker(folder / f"worker-{i}", moment, pick=chance))
            print(lives[-1], flush=True)
    print(f"\n{table(lives)}")
    write_csv(lives, options.csv)
    return int(any(life.faults or life.lost or life.twice for life in lives))


if __name__ == "__main__":
    sys.exit(main())
