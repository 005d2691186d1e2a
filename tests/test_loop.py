"""The loop over a toy: a formula in place of training, a clock that is set by hand, and kills at chosen moments."""

from __future__ import annotations

import gc
import math
from collections import Counter
from itertools import count

import pytest
from toy_search import FEW, QUALITY, Runner, Several, make_run

from autopeft.binding import bind_space
from autopeft.errors import AllTrialsFailedError, InfeasibleError, OutOfTimeError, TrialError
from autopeft.execute.local import LocalExecutor
from autopeft.execute.protocol import run_isolated
from autopeft.judging import judge
from autopeft.loop import SAME_FAILURES
from autopeft.objectives import OBJECTIVES, Objective
from autopeft.problem import Problem
from autopeft.search.study import Proposal, Study
from autopeft.space_file import load_space
from autopeft.store import RunDirectory
from autopeft.work import Measurement, Outcome


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


def test_the_number_of_trials_is_the_limit(run):
    runner = Runner()
    ending, records = run(runner, trials=6)
    assert ending == "trials"
    assert [r.number for r in records] == list(range(6))
    assert [(u.trial, u.steps, u.seed) for u in runner.units] == [(i, 7, 3) for i in range(6)]
    for record, unit in zip(records, runner.units, strict=True):
        assert record.candidate == unit.candidate
        assert record.values == {"quality": unit.candidate["x"]}


def test_the_number_counts_over_all_sittings(run):
    run(trials=4)
    runner = Runner()
    ending, records = run(runner, trials=6)
    assert (ending, len(records), len(runner.units)) == ("trials", 6, 2)
    assert run(runner, trials=6)[1] == records
    assert len(runner.units) == 2


def test_a_driver_holds_no_more_curves_the_longer_it_runs(run):
    """Loss curves are most of a record; the file keeps them, the driver those of the front and of the first trials."""
    held = []

    def measure(unit):
        alive = (x for x in gc.get_objects() if type(x) is Measurement and x.curve)
        held.append(len({id(x) for x in alive}))
        return Measurement(float(unit.candidate["x"]), curve=tuple((i, 1.0) for i in range(50)))

    run(Runner(measure), trials=20)
    run(Runner(measure), trials=40)
    assert max(held[20:]) <= max(held[:20]) <= SAME_FAILURES + 3


def test_the_time_ends_the_search_before_a_trial_that_would_not_end_in_it(run):
    now = [0.0]

    def measure(unit):
        now[0] += 10
        return Measurement(1.0)

    class Timed(LocalExecutor):
        def wait(self, timeout_seconds):
            start = now[0]
            return [Outcome(o.trial, o.state, o.measurement, seconds=now[0] - start) for o in super().wait(0)]

    runner = Runner(measure)
    ending, records = run(runner, seconds=45, clock=lambda: now[0], executor=lambda r: Timed(lambda: r))
    assert ending == "time"
    assert len(records) == 4  # a fifth would end at 50
    assert now[0] == 40


def test_as_many_are_trained_together_as_end_in_time(run):
    now, sizes = [0.0], []

    class Together(Several):
        capacity = together = 4

        def wait(self, timeout_seconds):
            units, self.units = self.units, []
            sizes.append(len(units))
            now[0] += 10 * len(units)
            outcomes = [run_isolated(self.runner, [unit])[0] for unit in units]
            return [Outcome(o.trial, o.state, o.measurement, seconds=10.0) for o in outcomes]

    ending, _ = run(seconds=65, clock=lambda: now[0], executor=Together)
    assert ending == "time"
    assert sizes == [4, 2]  # two more would end at 80
    assert now[0] == 60


def test_what_is_under_way_at_the_end_of_the_time_is_recorded_as_stopped_and_runs_again(run):
    ticks = count()
    runner = Runner()
    ending, records = run(runner, seconds=8, clock=lambda: next(ticks), executor=Several)
    assert ending == "time"
    stopped = [r for r in records if r.state == "stopped"]
    assert stopped
    assert all("the time was over" in r.reason and not r.values for r in stopped)
    done = len(records) - len(stopped)
    again = Runner()
    _, more = run(again, trials=done + len(stopped))
    assert [u.candidate for u in again.units] == [r.candidate for r in stopped]
    assert {u.trial for u in again.units}.isdisjoint(r.number for r in stopped)
    assert len(more) == done + 2 * len(stopped)


def test_time_that_is_over_before_the_first_trial_is_an_error(run):
    ticks = count(step=10)
    with pytest.raises(OutOfTimeError, match="raise --time, or lower --steps"):
        run(seconds=5, clock=lambda: next(ticks))


def test_an_exhausted_space_ends_the_search(run):
    ending, records = run(space=FEW, trials=50)
    assert ending == "exhausted"
    assert Counter((r.candidate["x"], r.candidate["kind"]) for r in records) == Counter(
        {(x, k): 1 for x in (1, 2, 3) for k in "ab"}
    )
    assert run(space=FEW, trials=50) == (ending, records)


def test_several_workers_do_the_same_work(run):
    runner = Runner()
    ending, records = run(runner, trials=10, executor=Several)
    assert (ending, len(records)) == ("trials", 10)
    assert sorted(r.number for r in records) == list(range(10))
    assert len({r.candidate for r in records}) == 10


def test_no_more_are_under_way_than_there_are_workers_or_trials_left(run):
    made = []

    def executor(runner):
        made.append(Several(runner))
        return made[-1]

    run(trials=2, executor=executor)
    assert made[0].most == 2
    run(trials=12, executor=executor)
    assert made[1].most == 3


def test_first_trials_that_all_fail_alike_end_the_search(run):
    def measure(unit):
        raise TrialError("no kernel for this device")

    runner = Runner(measure)
    with pytest.raises(AllTrialsFailedError, match=r"the first 5 trials failed alike: no kernel(.|\n)*Traceback"):
        run(runner, trials=50)
    assert len(runner.units) == SAME_FAILURES


def test_failures_of_different_reasons_go_on_to_the_limit(run):
    def measure(unit):
        raise TrialError(f"reason {unit.trial}")

    with pytest.raises(AllTrialsFailedError, match="all 9 trials failed; the first: reason 0"):
        run(Runner(measure), trials=9)


def test_one_success_among_the_first_keeps_the_search_alive(run):
    def measure(unit):
        if unit.trial != 2:
            raise TrialError("mostly")
        return Measurement(1.0)

    ending, records = run(Runner(measure), trials=9)
    assert ending == "trials"
    assert Counter(r.state for r in records) == {"failed": 8, "complete": 1}
    assert "TrialError" in records[0].traceback


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m: 1 / 0, "objective mine: ZeroDivisionError: division by zero"),
        (lambda m: m.metrics["no such"], "objective mine: KeyError: 'no such'"),
        (lambda m: math.nan, "objective mine is nan, not a number"),
        (lambda m: math.inf, "objective mine is inf, not a number"),
        (lambda m: "good", "objective mine: ValueError"),
        (lambda m: None, "objective mine: TypeError"),
    ],
)
def test_a_fault_of_the_callers_objective_is_that_trials_failure(function, reason, run):
    def only_some(measurement):
        return function(measurement) if measurement.quality < 0.7 else measurement.quality

    _, records = run(trials=12, objectives=(QUALITY, Objective("mine", "minimize", "", only_some)))
    for record in records:
        if record.measurement.quality < 0.7:
            assert record.state == "failed"
            assert record.reason.startswith(reason)
            assert record.values == {}
        else:
            assert record.state == "complete"
    assert {r.state for r in records} == {"failed", "complete"}


def test_a_quality_that_is_no_number_is_a_failure(run):
    def measure(unit):
        return Measurement(math.nan if unit.trial % 2 else 0.5)

    _, records = run(Runner(measure), trials=6)
    assert [r.state for r in records] == ["complete", "failed"] * 3
    assert records[1].reason == "quality is nan, not a number"


def test_a_metric_that_is_no_number_harms_nothing(run):
    def measure(unit):
        return Measurement(0.5, metrics={"perplexity": math.inf, "bits_per_byte": math.nan})

    _, records = run(Runner(measure), trials=3)
    assert [r.state for r in records] == ["complete"] * 3
    assert run(trials=3)[1][0].measurement.metrics["perplexity"] == math.inf


def test_more_memory_than_allowed_is_infeasible_and_counts_as_trained(run):
    def measure(unit):
        return Measurement(1.0, memory_bytes=3 * 2**20 if unit.trial % 2 else 2**20)

    _, records = run(Runner(measure), trials=4, memory_limit_bytes=2 * 2**20)
    assert [r.state for r in records] == ["complete", "infeasible"] * 2
    assert records[1].reason == "its peak memory, 3.00 MiB, is more than 2.00 MiB"
    assert records[1].measurement.memory_bytes == 3 * 2**20


def test_when_nothing_fits_the_memory_the_least_is_named(run):
    def measure(unit):
        return Measurement(1.0, memory_bytes=(9 - unit.trial) * 2**20)

    with pytest.raises(InfeasibleError, match=r"all 3 trials were infeasible; .* The least of it, 7.00 MiB"):
        run(Runner(measure), trials=3, memory_limit_bytes=2**20)


def test_a_budget_that_nothing_fits_is_an_error(run):
    with pytest.raises(InfeasibleError, match="nothing in it could be proposed"):
        run(trials=3, own_cost=lambda c: 100, parameter_limit=10)


def test_a_runner_that_trains_more_than_it_said_is_infeasible(run):
    def measure(unit):
        return Measurement(1.0, trainable_params=5 if unit.trial else 50)

    _, records = run(Runner(measure), trials=2, own_cost=lambda c: 5, parameter_limit=10)
    assert [r.state for r in records] == ["infeasible", "complete"]
    assert "it trained 50 parameters, more than 10" in records[0].reason


def test_when_all_train_more_than_they_said_nothing_is_said_of_memory(run):
    with pytest.raises(InfeasibleError, match=r"more than 10\.$"):
        run(
            Runner(lambda unit: Measurement(1.0, trainable_params=50)),
            trials=3,
            own_cost=lambda c: 5,
            parameter_limit=10,
        )


class Killed(BaseException):
    """As if the process had ended there."""


@pytest.mark.parametrize("moment", ["before the record", "after the record", "while training", "after the study"])
def test_a_kill_at_any_moment_loses_no_result_and_counts_none_twice(moment, run, monkeypatch):
    whole = Runner()
    original_append, original_tell = RunDirectory.append, Study.tell

    def append(self, record):
        if record.number == 3 and moment == "before the record":
            raise Killed
        original_append(self, record)
        if record.number == 3 and moment == "after the record":
            raise Killed

    def tell(self, record):
        original_tell(self, record)
        if record.number == 3 and moment == "after the study":
            raise Killed

    def measure(unit):
        if unit.trial == 3 and moment == "while training":
            raise Killed
        return Measurement(float(unit.candidate["x"]))

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append", append)
        patch.setattr(Study, "tell", tell)
        with pytest.raises(Killed):
            run(Runner(measure), trials=8)
    ending, records = run(whole, trials=8)
    assert ending == "trials"
    assert [r.number for r in records] == list(range(8))
    assert len({r.candidate for r in records}) == 8
    trained_again = moment in ("before the record", "while training")
    assert [u.trial for u in whole.units] == list(range(3 if trained_again else 4, 8))


def test_a_killed_search_ends_up_with_the_trials_of_an_uninterrupted_one(run, tmp_path):
    def measure(unit):
        if unit.trial == 4:
            raise Killed
        return Measurement(float(unit.candidate["x"]))

    with pytest.raises(Killed):
        run(Runner(measure), trials=9)
    _, resumed = run(trials=9)
    for file in tmp_path.iterdir():
        file.unlink()
    _, uninterrupted = run(trials=9)
    assert [(r.number, r.candidate, r.values) for r in resumed] == [
        (r.number, r.candidate, r.values) for r in uninterrupted
    ]


def test_a_record_holds_everything_of_its_trial(bert):
    problem = Problem(bind_space(load_space("default"), bert, cuda=False), tuple(OBJECTIVES.values()), bert)
    candidate = problem.space.complete({"method": "ia3"})
    outcome = Outcome(5, "complete", Measurement(0.5, 9, 8, adapter_bytes=7), worker="w", seconds=2.0)
    record = judge(problem, Proposal(5, candidate), outcome, seed=1, steps=7)
    assert record.cost == problem.cost(candidate)
    assert record.plan == problem.plan(candidate)
    assert record.values == {"quality": 0.5, "params": 9, "memory": 8, "train_seconds": 0, "adapter_bytes": 7}
    assert (record.worker, record.seconds, record.seed) == ("w", 2.0, 1)
    assert record.finished_at.endswith("+00:00")
