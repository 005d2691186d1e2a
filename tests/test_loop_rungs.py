"""The loop with rungs, over a toy whose learning curves are a formula: who goes on, what a kill costs, when it ends."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import count

import optuna
import pytest
from toy_search import FEW, QUALITY, Runner, Several, make_run

from autopeft.candidates import Candidate
from autopeft.errors import OutOfTimeError, TrialError
from autopeft.execute.local import LocalExecutor
from autopeft.execute.protocol import run_isolated
from autopeft.objectives import Objective
from autopeft.search.engine_sampler import EngineSampler
from autopeft.search.storage import sqlite_url
from autopeft.search.study import Study
from autopeft.store import RunDirectory
from autopeft.work import Measurement, Outcome

RUNGS = (1, 3)
SIZE = Objective("params", "minimize", "parameters", lambda m: float(m.trainable_params))


def measure(unit):
    """Better with x, and with every step."""
    x = float(unit.candidate["x"])
    return Measurement(x, 10, 1000, steps=unit.steps, metrics={"loss": 1 - x + 1 / unit.steps})


@pytest.fixture
def run(tmp_path):
    """Run a search with rungs in the test's folder; called again it goes on with it."""
    search = make_run(tmp_path)
    return lambda runner=None, **options: search(runner or Runner(measure), **{"rungs": RUNGS, **options})


def stretches(units):
    """Give what was trained of each trial: number -> pairs of steps."""
    found = {}
    for unit in units:
        found.setdefault(unit.trial, []).append((unit.first, unit.steps))
    return found


def lines_of(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def stored_trials(folder):
    study = optuna.load_study(study_name="autopeft", storage=sqlite_url(folder / "study.db"))
    return {t.number: t for t in study.get_trials(deepcopy=False)}


def told(records):
    return [
        (r.number, r.state, r.candidate, r.values, r.rungs, r.steps) for r in sorted(records, key=lambda r: r.number)
    ]


def check_consistent(folder, records):
    """What must hold of a run whenever its driver has ended well."""
    assert len({r.number for r in records}) == len(records)
    stored = stored_trials(folder)
    for record in records:
        trial = stored[record.number]
        losses = {result.step: result.loss for result in record.rungs}
        if record.state == "paused":
            assert trial.state.name == "RUNNING"
            assert trial.intermediate_values == losses
            assert not record.values
            assert list(losses) == list(RUNGS[: len(losses)])
        elif record.state == "complete":
            assert trial.state.name == "COMPLETE"
            assert trial.values == list(record.values.values())
            assert list(losses) == [*RUNGS, 7]
    assert {n for n, t in stored.items() if t.state.name == "RUNNING"} == {
        r.number for r in records if r.state == "paused"
    }


def test_of_those_at_a_rung_a_third_goes_on(run, tmp_path):
    runner = Runner(measure)
    ending, records = run(runner, trials=18)
    assert ending == "trials"
    assert len(records) == 18
    for number, parts in stretches(runner.units).items():
        state = next(r.state for r in records if r.number == number)
        assert parts == [(0, 1), (1, 3), (3, 7)][: len(parts)]
        assert (state == "complete") == (len(parts) == 3)
    assert all(unit.horizon == 7 for unit in runner.units)
    reached = Counter(len(r.rungs) for r in records)
    assert reached[2] + reached[3] >= 18 // 3
    assert reached[3] >= 2
    best = max(records, key=lambda r: r.candidate["x"])
    assert best.state == "complete"
    assert best.steps == 7
    check_consistent(tmp_path, records)
    paused = next(r for r in records if r.state == "paused")
    assert paused.reason.startswith("at step 1 of 7 with loss ")
    assert len(lines_of(tmp_path)) == len(runner.units)


def test_fewer_steps_are_taken_for_the_same_best(run, tmp_path):
    runner = Runner(measure)
    _, records = run(runner, trials=18)
    assert sum(unit.steps - unit.first for unit in runner.units) == sum(r.steps for r in records) < 18 * 7 / 2


def test_the_small_ones_go_on_beside_the_good_ones(run):
    """Quality grows with size: on the loss alone no small one would ever be done."""

    def grows(unit):
        x = float(unit.candidate["x"])
        return Measurement(x, int(1000 * x), 1, metrics={"loss": 1 - x + 1 / unit.steps})

    _, records = run(Runner(grows), trials=30, objectives=(QUALITY, SIZE))
    done = [r.values["quality"] for r in records if r.state == "complete"]
    assert min(done) < 0.35
    assert max(done) > 0.65


def test_configurations_of_the_start_are_always_done(run):
    starts = [{"x": 0.01, "kind": "a"}, {"x": 0.02, "kind": "b"}]
    space = {"parameters": {"x": {"low": 0.0, "high": 1.0}, "kind": {"choices": ["a", "b"]}}, "start": starts}
    _, records = run(space=space, trials=12)
    by_start = {r.candidate["x"]: r.state for r in records}
    assert by_start[0.01] == by_start[0.02] == "complete"
    assert Counter(r.state for r in records)["paused"] >= 4


def test_without_a_loss_the_quality_decides(run):
    worse = Objective("quality", "minimize", "", lambda m: m.quality)
    _, records = run(Runner(lambda unit: Measurement(float(unit.candidate["x"]))), trials=12, objectives=(worse,))
    assert min(records, key=lambda r: r.candidate["x"]).state == "complete"
    _, records = run(Runner(lambda unit: Measurement(float(unit.candidate["x"]))), trials=12, objectives=(worse,))
    assert records[0].rungs[0].loss == records[0].candidate["x"]


@pytest.mark.parametrize("trials", [1, 2, 5])
def test_of_few_trials_one_is_done(trials, run):
    ending, records = run(trials=trials)
    assert (ending, len(records)) == ("trials", trials)
    assert "complete" in {r.state for r in records}


def test_more_trials_let_paused_ones_go_on(run, tmp_path):
    def worsens(unit):
        return Measurement(-float(unit.trial))

    _, first = run(Runner(worsens), trials=6)
    assert [r.number for r in first if r.state == "complete"] == [0]
    runner = Runner(worsens)
    ending, records = run(runner, trials=24)
    assert (ending, len(records)) == ("trials", 24)
    assert stretches(runner.units)[1] == [(3, 7)]
    assert {r.number for r in records if len(r.rungs) > 1} == set(range(8))
    assert {r.number for r in records if r.state == "complete"} == {0, 1, 2}
    check_consistent(tmp_path, records)
    again = Runner(worsens)
    assert run(again, trials=24) == (ending, records)
    assert not again.units


def test_an_exhausted_space_still_lets_the_best_go_on(run):
    ending, records = run(space=FEW, trials=50)
    assert (ending, len(records)) == ("exhausted", 6)
    assert "complete" in {r.state for r in records if r.candidate["x"] == 3}


def test_several_workers_do_the_same_kind_of_work(run, tmp_path):
    runner = Runner(measure)
    ending, records = run(runner, trials=20, executor=Several)
    assert (ending, len(records)) == ("trials", 20)
    assert len({r.candidate for r in records}) == 20
    assert max(records, key=lambda r: r.candidate["x"]).state == "complete"
    assert all(parts == [(0, 1), (1, 3), (3, 7)][: len(parts)] for parts in stretches(runner.units).values())
    check_consistent(tmp_path, records)


@pytest.mark.parametrize("total", [60, 100])
@pytest.mark.parametrize("executor", [LocalExecutor, Several])
def test_no_more_steps_are_taken_than_allowed(total, executor, run):
    runner = Runner(measure)
    ending, records = run(runner, steps_total=total, executor=executor)
    taken = sum(unit.steps - unit.first for unit in runner.units)
    assert ending == "steps"
    assert total - 7 < taken <= total
    assert taken == sum(r.steps for r in records)
    more = Runner(measure)
    run(more, steps_total=total + 30)
    assert taken + sum(unit.steps - unit.first for unit in more.units) <= total + 30
    assert more.units


def test_steps_are_counted_without_rungs_too(run):
    runner = Runner(measure)
    ending, records = run(runner, rungs=(), steps_total=40)
    assert (ending, len(records)) == ("steps", 5)
    assert run(runner, rungs=(), steps_total=41)[1] == records
    assert len(run(runner, rungs=(), steps_total=42)[1]) == 6


def test_steps_that_hold_no_training_are_an_error(run):
    with pytest.raises(OutOfTimeError, match="raise --steps-total, or lower --steps"):
        run(steps_total=2)


def test_steps_trained_again_count(run):
    def forgetful(unit):
        return Measurement(**{**measure(unit).to_dict(), "restarted": unit.first > 0})

    _, records = run(Runner(forgetful), trials=4)
    done = next(r for r in records if r.state == "complete")
    assert done.steps == 1 + 3 + 7


@pytest.mark.parametrize("what", ["error", "quality", "loss"])
def test_what_diverges_stops_at_once(what, run, tmp_path):
    def diverges(unit):
        if unit.candidate["x"] > 0.6 and unit.steps == 3:
            if what == "error":
                raise TrialError("the loss is nan at step 2")
            bad = {"quality": {"quality": math.nan}, "loss": {"metrics": {"loss": math.inf}}}[what]
            return Measurement(**{**measure(unit).to_dict(), **bad})
        return measure(unit)

    runner = Runner(diverges)
    _, records = run(runner, trials=15)
    failed = [r for r in records if r.state == "failed"]
    assert failed
    for record in failed:
        assert stretches(runner.units)[record.number] == [(0, 1), (1, 3)]
        assert len(record.rungs) == 1
        assert record.reason in {
            "the loss is nan at step 2",
            "quality is nan, not a number",
            "the held-out loss is inf after step 3",
        }
    check_consistent(tmp_path, records)


def test_beyond_the_memory_stops_at_once(run):
    def large(unit):
        return Measurement(**{**measure(unit).to_dict(), "memory_bytes": 2**30 if unit.candidate["x"] > 0.5 else 1})

    runner = Runner(large)
    _, records = run(runner, trials=12, memory_limit_bytes=2**20)
    infeasible = {r.number for r in records if r.state == "infeasible"}
    assert infeasible
    assert all(parts == [(0, 1)] for n, parts in stretches(runner.units).items() if n in infeasible)


def test_the_end_of_the_time_leaves_paused_what_was_going_on(run, tmp_path):
    ticks = count()
    _, before = run(trials=9)
    paused = {r.number for r in before if r.state == "paused"}
    ending, records = run(seconds=10, clock=lambda: next(ticks), executor=Several)
    assert ending == "time"
    stopped = {r.number for r in records if r.state == "stopped"}
    assert not stopped & paused
    assert {r.number for r in records} >= {r.number for r in before}
    check_consistent(tmp_path, records)


def test_going_on_counts_with_its_own_time(run):
    """A step takes 10 s."""
    now = [0.0]

    class Timed(LocalExecutor):
        def wait(self, timeout_seconds):
            unit = self._units[0]
            now[0] += 10 * (unit.steps - unit.first)
            return [
                Outcome(o.trial, o.state, o.measurement, seconds=10.0 * (unit.steps - unit.first))
                for o in super().wait(0)
            ]

    ending, records = run(seconds=205, clock=lambda: now[0], executor=lambda r: Timed(lambda: r))
    assert ending == "time"
    assert now[0] <= 205
    assert now[0] > 195  # what was left held not even a first rung
    assert Counter(r.state for r in records)["complete"] >= 1


@pytest.mark.parametrize("workers", [1, 3])
def test_on_a_machine_slower_at_first_something_is_done_before_the_time_is_over(workers, run):
    """A step takes 10 s until three are taken, then 1 s: by the pace of the first nothing would be done in time."""
    now, taken = [0.0], [0]

    class Slow(Several):
        capacity = workers

        def wait(self, timeout_seconds):
            outcomes = []
            units, self.units = self.units, []
            for unit in units:
                start = now[0]
                for _ in range(unit.steps - unit.first):
                    now[0] += 10 if taken[0] < 3 else 1
                    taken[0] += 1
                [outcome] = run_isolated(self.runner, [unit])
                outcomes.append(Outcome(outcome.trial, outcome.state, outcome.measurement, seconds=now[0] - start))
            return outcomes

    ending, records = run(seconds=50, clock=lambda: now[0], executor=Slow)
    assert ending == "time"
    assert [r for r in records if r.state == "complete"]


def test_what_waits_at_a_rung_is_under_way_to_the_engine_with_what_it_has_shown(tmp_path):
    seen = []

    class Watching:
        def propose(self, trials, *, number, accepts):
            seen.append({trial.number: (trial.state, dict(trial.partial)) for trial in trials})
            return Candidate({"x": (number * 0.38) % 1, "kind": "a"})

    def sampler(seed):
        return EngineSampler(lambda problem, seed: Watching(), seed=seed)

    _, records = make_run(tmp_path)(Runner(measure), trials=24, rungs=RUNGS, executor=Several, sampler=sampler)
    losses = {r.number: {result.step: result.loss for result in r.rungs} for r in records}
    waited = {n: partial for n, (state, partial) in seen[-1].items() if state == "running" and partial}
    assert {r.number for r in records if r.state == "paused"} & waited.keys()
    assert all(partial.items() <= losses[n].items() for n, partial in waited.items())
    assert {state for state, _ in seen[-1].values()} == {"running", "complete"}


class Killed(BaseException):
    """As if the process had ended there."""


MOMENTS = ["while training", "before the record", "after the record", "after the study"]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("at", [(0, 1), (1, 3), (3, 7)])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_kill_at_any_moment_loses_no_result_and_counts_none_twice(moment, at, nth, run, tmp_path, monkeypatch):
    seen = count(1)
    under_way = []
    original_append, original_tell = RunDirectory.append, Study.tell

    def here(now):
        return now == moment and under_way == [at] and next(seen) == nth

    def measured(unit):
        under_way[:] = [(unit.first, unit.steps)]
        if here("while training"):
            raise Killed
        return measure(unit)

    def append(self, record):
        if here("before the record"):
            raise Killed
        original_append(self, record)
        if here("after the record"):
            raise Killed

    def tell(self, record):
        original_tell(self, record)
        if here("after the study"):
            raise Killed

    first, second = Runner(measured), Runner(measure)
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append", append)
        patch.setattr(Study, "tell", tell)
        with pytest.raises(Killed):
            run(first, trials=14)
    ending, records = run(second, trials=14)
    assert ending == "trials"
    check_consistent(tmp_path, records)
    again = moment in ("while training", "before the record")
    done = [(u.trial, u.first, u.steps) for u in [*first.units[: len(first.units) - again], *second.units]]
    assert len(set(done)) == len(done)
    (tmp_path / "records.jsonl").unlink()
    (tmp_path / "study.db").unlink()
    assert told(records) == told(run(trials=14)[1])


def test_a_lost_study_is_rebuilt_with_what_paused(run, tmp_path):
    _, records = run(trials=9)
    (tmp_path / "study.db").unlink()
    assert run(trials=9) == ("trials", records)
    check_consistent(tmp_path, records)
    _, more = run(trials=20)
    check_consistent(tmp_path, more)


def test_a_study_that_knows_more_than_the_records_is_rebuilt(run, tmp_path):
    """Somebody took the end of a trial out: it is paused again, and goes on from there."""
    _, records = run(trials=9)
    done = next(r for r in records if r.state == "complete")
    lines = (tmp_path / "records.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if (said := json.loads(line))["number"] != done.number or said["state"] == "paused"]
    (tmp_path / "records.jsonl").write_text("".join(kept))
    runner = Runner(measure)
    _, again = run(runner, trials=9)
    assert stretches(runner.units) == {done.number: [(3, 7)]}
    assert told(again) == told(records)


def test_of_two_ends_of_a_trial_the_first_counts(run, tmp_path):
    _, records = run(trials=9)
    lines = (tmp_path / "records.jsonl").read_text().splitlines(keepends=True)
    done = next(r for r in records if r.state == "complete")
    own = [json.loads(line) for line in lines if json.loads(line)["number"] == done.number]
    assert [line["state"] for line in own] == ["paused", "paused", "complete"]
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write(json.dumps({**own[-1], "values": {"quality": 99.0}}) + "\n" + json.dumps(own[0]) + "\n")
    assert told(run(trials=9)[1]) == told(records)
