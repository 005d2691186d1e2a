"""The study: asking, telling, and going on after the driver died at any moment."""

from __future__ import annotations

from dataclasses import replace

import optuna
import pytest
from small_search import ENGINES, THREE, problem_on, told_by_hand
from sqlalchemy import event

from autopeft.errors import DamagedRunError, UnknownNameError
from autopeft.objectives import METRICS, Objective, quality_of
from autopeft.problem import Problem
from autopeft.search.storage import sqlite_url
from autopeft.search.study import STUDY_NAME, Study
from autopeft.space_file import parse_space


@pytest.fixture
def problem(bert):
    """A problem with a short start, so that the engine soon has its say."""
    whole = problem_on(bert, limit=5000)
    return replace(whole, space=replace(whole.space, start=whole.space.start[:4]))


@pytest.fixture
def open_study(problem, tmp_path):
    def open_study(records=(), *, sampler="tpe", name="study.db", of=problem, seed=0):
        return Study(of, url=sqlite_url(tmp_path / name), sampler=sampler, seed=seed, records=records)

    return open_study


def step(study, problem, records, state="complete"):
    proposal = study.ask()
    record = told_by_hand(problem, proposal, state)
    records.append(record)
    study.tell(record)
    return proposal


def loaded(tmp_path, name="study.db"):
    return optuna.load_study(study_name=STUDY_NAME, storage=sqlite_url(tmp_path / name))


def test_the_spaces_own_configurations_come_first(bert, open_study):
    problem = problem_on(bert, limit=5000)
    study, records = open_study(of=problem), []
    fitted = [problem.fit(problem.space.complete(start)) for start in problem.space.start]
    wanted = list(dict.fromkeys(problem.identity(c) for c in fitted if c is not None))
    found = [problem.identity(step(study, problem, records).candidate) for _ in wanted]
    assert found == wanted


def test_a_start_over_the_budget_is_lowered_into_it(bert, open_study):
    tight = problem_on(bert, limit=1500)
    first = open_study(of=tight).ask()
    assert first.candidate["method"] == "lora"
    assert tight.cost(first.candidate).trainable_params <= 1500


@pytest.mark.parametrize("sampler", ENGINES)
@pytest.mark.parametrize("cut", [2, 13])
def test_a_resumed_study_proposes_what_the_uninterrupted_one_does(sampler, cut, problem, open_study):
    whole, records = open_study(sampler=sampler, name="whole.db"), []
    wanted = [step(whole, problem, records).candidate for _ in range(18)]
    study, records = open_study(sampler=sampler), []
    found = [step(study, problem, records).candidate for _ in range(cut)]
    study = open_study(records, sampler=sampler)
    found += [step(study, problem, records).candidate for _ in range(18 - cut)]
    assert found == wanted


@pytest.mark.parametrize("sampler", ["known-cost", "tpe"])
def test_a_resumed_study_proposes_the_same_with_several_trials_under_way(sampler, problem, open_study):
    def run(name, *, cut):
        study, records, running, found = open_study(name=name, sampler=sampler), [], [], []
        for i in range(18):
            if i == cut:
                study = open_study(records, name=name, sampler=sampler)
                running = [study.ask() for _ in running]
            running.append(study.ask())
            found.append(running[-1])
            if len(running) == 3:
                records.append(told_by_hand(problem, running.pop(0)))
                study.tell(records[-1])
        return [(p.number, p.candidate) for p in found]

    assert run("a.db", cut=12) == run("b.db", cut=None)


@pytest.mark.parametrize("suggestions", [0, 1, 3])
def test_a_driver_killed_while_it_asks_goes_on_with_that_trial(suggestions, problem, open_study, monkeypatch):
    whole, records = open_study(name="whole.db"), []
    wanted = [step(whole, problem, records) for _ in range(11)]
    study, records = open_study(), []
    found = [step(study, problem, records) for _ in range(9)]
    left = iter(range(suggestions))
    original = optuna.Trial._suggest

    def suggest(self, *args):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Trial, "_suggest", suggest)
        with pytest.raises(KeyboardInterrupt):
            study.ask()
    study = open_study(records)
    found += [step(study, problem, records) for _ in range(2)]
    assert found == wanted


def test_a_trial_cut_off_is_asked_for_again_under_its_number(problem, open_study):
    study, records = open_study(), []
    done = step(study, problem, records)
    under_way = [study.ask(), study.ask()]
    study = open_study(records)
    assert [study.ask(), study.ask()] == under_way
    assert study.ask().number == 3
    assert done.number == 0


def test_a_record_that_the_study_was_not_told_counts_once(problem, open_study, tmp_path):
    """Killed between writing the record and telling the study."""
    study, records = open_study(), []
    step(study, problem, records)
    proposal = study.ask()
    records.append(told_by_hand(problem, proposal))
    study = open_study(records)
    assert study.ask().number == 2
    states = [t.state.name for t in loaded(tmp_path).get_trials()][:3]
    assert states == ["COMPLETE", "COMPLETE", "RUNNING"]


def test_a_trial_is_stored_without_a_query_a_parameter(problem, open_study):
    study, records = open_study(sampler="random"), []
    step(study, problem, records)
    said = []
    event.listen(study._storage.engine, "before_cursor_execute", lambda *about: said.append(about[2]))
    candidate = study.ask().candidate
    queries = [statement for statement in said if statement.startswith("SELECT")]
    assert 0 < len(queries) < len(candidate.values)
    assert any("INTO trial_params" in statement for statement in said)


def test_telling_twice_changes_nothing(problem, open_study, tmp_path):
    study, records = open_study(), []
    step(study, problem, records)
    study.tell(told_by_hand(problem, type("P", (), {"number": 0, "candidate": records[0].candidate})(), "failed"))
    study.tell(records[0])
    (trial,) = [t for t in loaded(tmp_path).get_trials() if t.number == 0]
    assert trial.state.name == "COMPLETE"


@pytest.mark.parametrize("sampler", ENGINES)
def test_a_lost_study_is_rebuilt_from_the_records(sampler, problem, open_study, tmp_path):
    whole, records = open_study(sampler=sampler, name="whole.db"), []
    wanted = [step(whole, problem, records) for _ in range(18)]
    study = open_study(records[:12], sampler=sampler)
    found = [step(study, problem, records) for _ in range(6)]
    assert [p.number for p in found] == list(range(12, 18))
    if sampler != "nsga2":  # its generations are kept in the study only
        assert found == wanted[12:]
    before, after = (loaded(tmp_path, name).get_trials()[:12] for name in ("whole.db", "study.db"))
    for one, other in zip(before, after, strict=True):
        assert (one.number, one.state, one.values, one.params) == (
            other.number,
            other.state,
            other.values,
            other.params,
        )


def test_a_study_lost_during_the_start_still_runs_the_rest_of_it(problem, open_study):
    whole, records = open_study(name="whole.db"), []
    wanted = [step(whole, problem, records).candidate for _ in range(4)]
    study = open_study(records[:1])
    again = [step(study, problem, []).candidate for _ in range(3)]
    assert again == wanted[1:]


def test_a_gap_in_the_records_keeps_the_numbers(problem, open_study, tmp_path):
    study, records = open_study(name="whole.db"), []
    for _ in range(6):
        step(study, problem, records)
    study = open_study([r for r in records if r.number != 2])
    trials = loaded(tmp_path).get_trials()
    assert [t.state.name for t in trials[:6]] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert study.ask().number >= 6


def test_what_the_end_of_the_time_cut_off_runs_again_under_a_new_number(problem, open_study):
    study, records = open_study(), []
    for _ in range(6):
        step(study, problem, records)
    stopped = step(study, problem, records, "stopped")
    study = open_study(records)
    study = open_study(records)  # opened twice, it is queued once
    again = study.ask()
    assert (again.number, again.candidate) == (7, stopped.candidate)
    records.append(told_by_hand(problem, again))
    study.tell(records[-1])
    study = open_study(records)
    assert study.ask().candidate != stopped.candidate


@pytest.mark.parametrize(("state", "told"), [("failed", "FAIL"), ("infeasible", "PRUNED"), ("stopped", "PRUNED")])
def test_what_gave_no_values_is_told_as_such_and_not_proposed_again(state, told, problem, open_study, tmp_path):
    study, records = open_study(), []
    for i in range(20):
        step(study, problem, records, state if i % 2 else "complete")
    assert len({problem.identity(r.candidate) for r in records}) == 20
    assert [t.state.name for t in loaded(tmp_path).get_trials()[:20]] == ["COMPLETE", told] * 10


def test_optuna_reads_the_study_with_its_three_directions_and_names(problem, open_study, tmp_path):
    study, records = open_study(), []
    for _ in range(10):
        step(study, problem, records)
    seen = loaded(tmp_path)
    assert [d.name for d in seen.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]
    assert seen.metric_names == ["quality", "params", "memory"]
    complete = [t for t in seen.get_trials() if t.state.name == "COMPLETE"]
    assert [t.values for t in complete] == [list(r.values.values()) for r in records]
    assert {t.number for t in seen.best_trials} <= set(range(10))
    assert len(seen.trials_dataframe()) >= 10


def test_a_quality_that_is_better_when_smaller_has_that_direction(bert, open_study, tmp_path):
    base = problem_on(bert)
    of = Problem(base.space, (quality_of(METRICS["loss"]), *THREE[1:]), bert)
    open_study(of=of)
    assert loaded(tmp_path).directions[0].name == "MINIMIZE"


def test_one_objective_of_the_callers_own_is_enough(open_study, tmp_path):
    space = parse_space({"parameters": {"x": {"low": 0.0, "high": 1.0}}})
    of = Problem(space, (Objective("speed", "maximize", "", lambda m: m.quality),))
    for sampler in ENGINES:
        study = open_study(of=of, sampler=sampler, name=f"{sampler}.db")
        for _ in range(15):
            proposal = study.ask()
            study.tell(replace(told_by_hand(of, proposal), values={"speed": proposal.candidate["x"]}))
        assert loaded(tmp_path, f"{sampler}.db").best_value > 0.5


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_damaged_database_is_a_damaged_run(content, open_study, tmp_path):
    (tmp_path / "study.db").write_bytes(content)
    with pytest.raises(DamagedRunError, match=r"[Dd]elete it"):
        open_study()


def test_a_database_cut_in_the_middle_is_a_damaged_run(problem, open_study, tmp_path):
    study, records = open_study(), []
    for _ in range(10):
        step(study, problem, records)
    study.close()
    data = (tmp_path / "study.db").read_bytes()
    for file in tmp_path.glob("study.db-*"):
        file.unlink()
    (tmp_path / "study.db").write_bytes(data[: len(data) // 2])
    with pytest.raises(DamagedRunError, match=r"[Dd]elete it"):
        open_study(records)
    (tmp_path / "study.db").unlink()
    assert open_study(records).ask().number == 10


def test_a_study_of_other_objectives_is_a_damaged_run(bert, open_study):
    open_study()
    with pytest.raises(DamagedRunError, match="holds 3 objectives, not these 1"):
        open_study(of=Problem(problem_on(bert).space, THREE[:1], bert))


def test_a_storage_that_does_not_answer_is_said(problem):
    with pytest.raises(DamagedRunError, match="see that it runs and can be reached"):
        Study(problem, url="postgresql://nobody@127.0.0.1:1/none", sampler="tpe", seed=0)


def test_an_unknown_sampler_is_suggested(problem, tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'random'"):
        Study(problem, url=sqlite_url(tmp_path / "s.db"), sampler="randm", seed=0)


def test_a_sampler_of_the_callers_own_is_wrapped_too(problem, open_study):
    study, records = open_study(sampler=lambda seed: optuna.samplers.RandomSampler(seed=seed)), []
    for _ in range(20):
        step(study, problem, records)
    assert all(not problem.refusal(r.candidate) for r in records)
