"""How much of a run survives kill -9: the driver and the workers of real searches, killed at random moments.

Each life is a search of the embedded default by the real command line. Its stages are the preparation, the start of
Ray, the time until each record, and the report; the moments are spread evenly over the stages, and drawn at random
within. At its moment the driver, or one of its Ray workers, is killed; `autopeft resume` goes on until the search is
done; then the run directory is checked against what it held at the kill. Prints a table, and writes it as CSV.

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

TRIALS = 8
SEARCH = ("--executor", "ray", "--workers", "2", "--trials", str(TRIALS), "--steps", "4", "--eval-rows", "20")
NO_TIME_LIMIT = ("--time", "1h")  # the default's own limit would end a search on a slow machine
WORKER_TITLE = "ray::ResourceTrainable"  # Tune wraps the trainable in a class of its own
_TRAINING = ".train"  # what Ray adds to the title of a worker at work
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

    def wait_until(self, reached: Callable[[], bool]) -> bool:
        """Wait until something is so; tells whether the process still runs then."""
        while self.process.poll() is None and not reached() and self.seconds < _PATIENCE_SECONDS:
            time.sleep(0.01)
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


# --- moments ---------------------------------------------------------------------------------------------------------


PREPARING, STARTING, SEARCHING = 0, 1, 2
"""The first stages of a life; each record begins another."""


def stage(driver: Driver, run_dir: Path) -> int:
    """Tell how far a search is."""
    if not (run_dir / "request.yaml").exists():
        return PREPARING
    if not driver.started():
        return STARTING
    return SEARCHING + len(record_lines(run_dir))


def measure_stages(run_dir: Path) -> list[float]:
    """Run a search to its end; gives the seconds that each stage took."""
    driver = start(run_dir)
    begins = {PREPARING: 0.0}
    while driver.wait_until(lambda: stage(driver, run_dir) not in begins):
        begins[stage(driver, run_dir)] = driver.seconds
    if driver.end():
        sys.exit(f"a search that nobody killed failed: {driver.said()}")
    times = [begins.get(number, driver.seconds) for number in range(SEARCHING + TRIALS + 1)] + [driver.seconds]
    return [max(0.0, after - before) for before, after in itertools.pairwise(times)]


@dataclass(frozen=True, slots=True)
class Moment:
    """So many seconds after a stage began."""

    stage: int
    seconds: float

    def wait(self, driver: Driver, run_dir: Path) -> bool:
        """Wait for it; tells whether the driver still runs then."""
        driver.wait_until(lambda: stage(driver, run_dir) >= self.stage)
        began = driver.seconds
        return driver.wait_until(lambda: driver.seconds - began >= self.seconds)


def spread(count: int, stages: Sequence[float], chance: random.Random, *, first: int, last: int) -> list[Moment]:
    """Draw a moment in each of so many equal parts of the stages from `first` to `last`."""
    places = [first + (last + 1 - first) * (part + chance.random()) / count for part in range(count)]
    return [Moment(int(place), stages[int(place)] * (place - int(place))) for place in places]


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
    seconds: float
    phase: str
    before: int = 0
    after: int = 0
    lost: int = 0
    twice: int = 0
    again: int = 0
    resumes: int = 0
    workers_gone_seconds: float | None = None
    left: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def kill_driver(run_dir: Path, moment: Moment) -> Life:
    """Kill a search's driver at a moment of its life, resume it to its end, and check it."""
    driver = start(run_dir)
    ended = not moment.wait(driver, run_dir)
    orphans = Orphans(descendants(driver.process.pid))
    driver.process.kill()
    driver.end()
    orphans.start()
    life = Life("driver", round(driver.seconds, 1), "it had just ended" if ended else _phase(driver, run_dir))
    before = record_lines(run_dir)
    resumed = _resume_to_the_end(run_dir, life)
    _check_life(life, run_dir, before, [driver, *resumed])
    life.workers_gone_seconds, life.left = orphans.end()
    return life


def kill_worker(run_dir: Path, moment: Moment, *, pick: random.Random) -> Life:
    """Kill one worker of a search at a moment of its life; the search itself must go on, and is checked."""
    driver = start(run_dir)
    moment.wait(driver, run_dir)
    victims: list[Process] = []
    driver.wait_until(lambda: bool(victims.extend(workers_of(driver.process.pid)) or victims))
    before = record_lines(run_dir)
    life = Life("worker", round(driver.seconds, 1), _phase(driver, run_dir) if victims else "it had just ended")
    if victims:
        victim = pick.choice(victims)
        victim.kill()
        life.again = int(victim.title.endswith(_TRAINING))
        life.phase += "" if life.again else ", this worker idle"
    if code := driver.end():
        life.faults.append(f"the search ended with exit code {code}: {driver.said()[-300:]}")
    resumed = _resume_to_the_end(run_dir, life) if code else []
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
    life.again += len(_repeated(started))
    life.faults += checked.faults


def _phase(driver: Driver, run_dir: Path) -> str:
    match stage(driver, run_dir):
        case 0:
            return "preparing, the run directory is there" if run_dir.exists() else "before the run directory"
        case 1:
            return "starting Ray"
        case number if number < SEARCHING + TRIALS:
            return f"trial {max(driver.started())} under way"
        case _:
            return "writing the report"


# --- the table -------------------------------------------------------------------------------------------------------


def table(lives: Sequence[Life]) -> str:
    """Write the lives as a Markdown table."""
    head = "| killed | at (s) | moment | records before | after | lost | counted twice | run again | resumes | faults |"
    rows = [
        f"| {life.killed} | {life.seconds:.1f} | {life.phase} | {life.before} | {life.after} | {life.lost} "
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
        stages = measure_stages(folder / "whole")
        print(f"a life takes {sum(stages):.1f} s; its stages: {', '.join(f'{s:.1f}' for s in stages)}", flush=True)
        for i, moment in enumerate(spread(options.drivers, stages, chance, first=PREPARING, last=len(stages) - 1)):
            lives.append(kill_driver(folder / f"driver-{i}", moment))
            print(lives[-1], flush=True)
        for i, moment in enumerate(spread(options.workers, stages, chance, first=SEARCHING, last=len(stages) - 2)):
            lives.append(kill_worker(folder / f"worker-{i}", moment, pick=chance))
            print(lives[-1], flush=True)
    print(f"\n{table(lives)}")
    write_csv(lives, options.csv)
    return int(any(life.faults or life.lost or life.twice for life in lives))


if __name__ == "__main__":
    sys.exit(main())
