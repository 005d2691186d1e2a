"""How much of a run survives kill -9: the driver and the workers of real searches, killed at random moments.

Each life is a search of the embedded default by the real command line. Its stages are the preparation, the start of
Ray, the time until each record, and the report; the moments are spread evenly over the stages, and drawn at random
within. At its moment the driver, or one of its Ray workers, is killed; `autopeft resume` goes on until the search is
done; then the run directory is checked against what it held at the kill. Prints a table, and writes it as CSV.

    python benchmarks/kill.py --drivers 10 --workers 5 --seed 0
    python benchmarks/kill.py --rungs 1,2 --csv benchmarks/results/kill_rungs.csv
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from results import write_rows
from survival import WORKER_TITLE, Driver, Process, check, descendants, go_on, record_lines, repeated, start

TRIALS = 8
SEARCH = (
    "--executor", "ray", "--workers", "2", "--trials", str(TRIALS), "--steps", "4", "--eval-rows", "20",
    "--time", "1h",  # the default's own limit would end a search on a slow machine
)  # fmt: skip
_TRAINING = ".train"  # what Ray adds to the title of a worker at work
_MOST_RESUMES = 3


# --- moments ---------------------------------------------------------------------------------------------------------


PREPARING, STARTING, SEARCHING = 0, 1, 2
"""The first stages of a life; each record begins another."""


def search_in(run_dir: Path, rungs: str) -> Driver:
    """Start a search."""
    return start(run_dir, *SEARCH, "--rungs", rungs)


def stage(driver: Driver, run_dir: Path) -> int:
    """Tell how far a search is."""
    if not (run_dir / "request.yaml").exists():
        return PREPARING
    if not driver.started():
        return STARTING
    return SEARCHING + len(record_lines(run_dir))


def measure_stages(run_dir: Path, rungs: str) -> list[float]:
    """Run a search to its end; gives the seconds that each stage took."""
    driver = search_in(run_dir, rungs)
    begins = {PREPARING: 0.0}
    while driver.wait_until(lambda: stage(driver, run_dir) not in begins):
        begins[stage(driver, run_dir)] = driver.seconds
    if driver.end():
        sys.exit(f"a search that nobody killed failed: {driver.said()}")
    times = [begins.get(number, driver.seconds) for number in range(SEARCHING + len(record_lines(run_dir)) + 1)]
    times.append(driver.seconds)
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


# --- lives -----------------------------------------------------------------------------------------------------------


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


def kill_driver(run_dir: Path, moment: Moment, *, rungs: str) -> Life:
    """Kill a search's driver at a moment of its life, resume it to its end, and check it."""
    driver = search_in(run_dir, rungs)
    ended = not moment.wait(driver, run_dir)
    orphans = Orphans(descendants(driver.process.pid))
    driver.process.kill()
    driver.end()
    orphans.start()
    life = Life("driver", round(driver.seconds, 1), "it had just ended" if ended else _phase(driver, run_dir))
    before = record_lines(run_dir)
    resumed = _resume_to_the_end(run_dir, life, rungs)
    _check_life(life, run_dir, before, [driver, *resumed])
    life.workers_gone_seconds, life.left = orphans.end()
    return life


def kill_worker(run_dir: Path, moment: Moment, *, rungs: str, pick: random.Random) -> Life:
    """Kill one worker of a search at a moment of its life; the search itself must go on, and is checked."""
    driver = search_in(run_dir, rungs)
    moment.wait(driver, run_dir)
    victims = driver.await_workers()
    before = record_lines(run_dir)
    life = Life("worker", round(driver.seconds, 1), _phase(driver, run_dir) if victims else "it had just ended")
    if victims:
        victim = pick.choice(victims)
        victim.kill()
        life.again = int(victim.title.endswith(_TRAINING))
        life.phase += "" if life.again else ", this worker idle"
    if code := driver.end():
        life.faults.append(f"the search ended with exit code {code}: {driver.said()[-300:]}")
    resumed = _resume_to_the_end(run_dir, life, rungs) if code else []
    _check_life(life, run_dir, before, [driver, *resumed])
    return life


def _resume_to_the_end(run_dir: Path, life: Life, rungs: str) -> list[Driver]:
    """Resume until the search ends well; a folder that is no run yet is searched anew, as its user would."""
    drivers: list[Driver] = []
    for attempt in range(1, _MOST_RESUMES + 1):
        is_run = (run_dir / "request.yaml").exists()
        drivers.append(go_on(run_dir) if is_run else search_in(run_dir, rungs))
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
    life.again += len(repeated(started))
    life.faults += checked.faults


def _phase(driver: Driver, run_dir: Path) -> str:
    match stage(driver, run_dir):
        case 0:
            return "preparing, the run directory is there" if run_dir.exists() else "before the run directory"
        case 1:
            return "starting Ray"
        case number if number < SEARCHING + len(handed_out := driver.handed_out()):
            return f"trial {handed_out[-1]} under way"
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
    """Write the lives in place of those of another time."""
    path.unlink(missing_ok=True)
    rows = [asdict(life) | {"left": ", ".join(life.left), "faults": "; ".join(life.faults)} for life in lives]
    write_rows(path, rows)


def main() -> int:
    """Kill, resume, check; gives 1 if anything was found wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drivers", type=int, default=10, help="how many drivers to kill")
    parser.add_argument("--workers", type=int, default=5, help="how many workers to kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--rungs", default="off", help="steps at which trials pause, of 4")
    parser.add_argument("--keep", type=Path, help="folder for the run directories; by default a temporary one")
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "kill.csv")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    lives: list[Life] = []
    with tempfile.TemporaryDirectory(prefix="autopeft-kill-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        stages = measure_stages(folder / "whole", options.rungs)
        print(f"a life takes {sum(stages):.1f} s; its stages: {', '.join(f'{s:.1f}' for s in stages)}", flush=True)
        for i, moment in enumerate(spread(options.drivers, stages, chance, first=PREPARING, last=len(stages) - 1)):
            lives.append(kill_driver(folder / f"driver-{i}", moment, rungs=options.rungs))
            print(lives[-1], flush=True)
        for i, moment in enumerate(spread(options.workers, stages, chance, first=SEARCHING, last=len(stages) - 2)):
            lives.append(kill_worker(folder / f"worker-{i}", moment, rungs=options.rungs, pick=chance))
            print(lives[-1], flush=True)
    print(f"\n{table(lives)}")
    write_csv(lives, options.csv)
    return int(any(life.faults or life.lost or life.twice for life in lives))


if __name__ == "__main__":
    sys.exit(main())
