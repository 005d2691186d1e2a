"""Earlier runs as a prior: which trials count, what they mean in another space, and every refusal."""

from __future__ import annotations

import math

import pytest

from autopeft.anatomy import Anatomy
from autopeft.binding import bind_space
from autopeft.candidates import Candidate
from autopeft.earlier import carried, priors_of, read_earlier
from autopeft.errors import RequestError
from autopeft.objectives import OBJECTIVES
from autopeft.problem import Problem
from autopeft.records import Prior, RungResult, RunInfo, TrialRecord
from autopeft.space_file import parse_space

SPACE = parse_space(
    {
        "parameters": {
            "kind": {"choices": ["a", "b"]},
            "size": {"ordinal": [1, 2, 4]},
            "bend": {"low": 0.0, "high": 1.0, "when": {"kind": ["b"]}},
        }
    }
)
PROBLEM = Problem(SPACE, (OBJECTIVES["quality"],))


def info(**changes):
    quality = {"name": "quality", "goal": "maximize", "unit": ""}
    return RunInfo(
        **{
            "request": {"steps": 5},
            "objectives": (quality,),
            "space": "",
            "created_at": "",
            "versions": {},
            "hardware": {},
            **changes,
        }
    )


def record(number, values, quality=None, *, state="complete", rungs=()):
    told = {} if quality is None else {"quality": quality}
    return TrialRecord(number, state, Candidate(values), 0, values=told, rungs=tuple(RungResult(*r) for r in rungs))


def prior_from(records, **changes):
    return priors_of([("runs/a", info(**changes), records)], info(), PROBLEM)[0]


def test_trials_are_ranked_within_their_run():
    records = [
        record(i, {"kind": "a", "size": size}, quality)
        for i, (size, quality) in enumerate([(1, 0.1), (2, 1e9), (4, 0.2)])
    ]
    prior = prior_from(records)
    assert prior.candidates == tuple(r.candidate for r in records)
    assert prior.scores[1] < prior.scores[2] == 0 < prior.scores[0]
    assert prior.scores[0] == pytest.approx(-prior.scores[1])
    assert math.erf(prior.scores[0] / 2**0.5) == pytest.approx(2 / 3)  # the third of three: at 5/6
    assert prior.skipped == 0


def test_what_has_no_result_says_nothing():
    records = [record(0, {"kind": "a", "size": 1}, 1.0)]
    records += [
        record(1 + i, {"kind": "a", "size": 2}, state=s) for i, s in enumerate(("failed", "infeasible", "stopped"))
    ]
    prior = prior_from(records)
    assert len(prior.candidates) == 1
    assert prior.skipped == 3


def test_a_paused_trial_counts_where_enough_have_gone_on():
    """The line through those that went on: quality = 2 - loss at step 3."""
    done = [
        record(i, {"kind": "b", "size": 4, "bend": i / 10}, 2 - i / 10, rungs=[(3, i / 10), (9, 0.0)]) for i in range(6)
    ]
    paused = record(6, {"kind": "a", "size": 2}, state="paused", rungs=[(3, 0.25)])
    elsewhere = record(7, {"kind": "a", "size": 4}, state="paused", rungs=[(1, 0.25)])
    prior = prior_from([*done, paused, elsewhere])
    assert prior.candidates[-1] == paused.candidate
    assert prior.scores[2] < prior.scores[-1] < prior.scores[3]
    assert prior.skipped == 1
    assert not prior_from([*done[:3], paused]).scores[3:]


@pytest.mark.parametrize(
    ("values", "means"),
    [
        ({"kind": "a", "size": 2.0, "gone": True}, {"kind": "a", "size": 2}),
        ({"kind": "a", "size": 2, "bend": 7.0}, {"kind": "a", "size": 2}),  # it does not exist for kind a
        ({"kind": "b", "size": 2, "bend": 7.0}, None),
        ({"kind": "c", "size": 2}, None),
        ({"kind": "a", "size": 3}, None),
        ({"kind": "b", "size": 1}, {"kind": "b", "size": 1, "bend": 0.5}),
        ({"something": "else"}, None),
    ],
)
def test_a_candidate_is_carried_into_the_space_or_left(values, means):
    found = carried(values, SPACE)
    assert found == (None if means is None else Candidate(means))


def test_layers_of_another_model_are_met_by_their_place(llama: Anatomy):
    """Twelve layers in four groups there, as many groups of two layers here: first to first, last to last."""
    parameters = {
        "method": {"choices": ["lora"]},
        "lora.rank": {"ordinal": [0, 2, 4, 8, 16], "per": "layers", "size": True},
    }
    space = bind_space(parse_space({"parameters": parameters, "layer_groups": "each"}), llama, cuda=False)
    names = [p.name for p in space if p.name.startswith("lora.rank")]
    there = {"lora.rank[0-5]": 2, "lora.rank[6-11]": 16}
    found = carried({"method": "lora", **there}, space)
    half = len(names) // 2
    assert [found[name] for name in names] == [2] * (len(names) - half) + [16] * half


def test_what_was_another_run_is_said():
    other = {"request": {"steps": 9}, "model": {"name": "m"}, "data": {"name": "rows"}}
    records = [record(0, {"kind": "a", "size": 1}, 1.0)]
    assert prior_from(records, **other).differs == ("model", "data", "steps a trial")
    assert prior_from(records).differs == ()


def test_another_quality_is_refused():
    minimised = {"name": "quality", "goal": "minimize", "unit": "nats"}
    with pytest.raises(
        RequestError, match=r"warm_from: 'runs/a': its quality is quality \(minimize, nats\), here it is"
    ):
        prior_from([record(0, {"kind": "a", "size": 1}, 1.0)], objectives=(minimised,))


def test_another_metric_is_refused():
    anatomy = {"task": "text-classification"}
    ours = info(anatomy=anatomy)
    theirs = info(anatomy=anatomy, request={"metric": "f1_macro"})
    with pytest.raises(RequestError, match=r"f1_macro \(maximize\), here it is accuracy \(maximize\)"):
        priors_of([("runs/a", theirs, [record(0, {"kind": "a", "size": 1}, 1.0)])], ours, PROBLEM)


def test_a_run_that_says_nothing_is_refused():
    with pytest.raises(RequestError, match="none of its 2 trials"):
        prior_from([record(0, {"kind": "a", "size": 1}, state="failed"), record(1, {"kind": "z", "size": 1}, 1.0)])


def test_all_folders_that_cannot_be_read_are_named(tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "request.yaml").write_text("{}\n")
    with pytest.raises(RequestError) as error:
        read_earlier([str(tmp_path / "nowhere"), str(damaged)])
    assert [fault.split(":")[0] for fault in error.value.faults] == ["warm_from", "warm_from"]
    assert "nowhere" in error.value.faults[0]
    assert "no run directory" in error.value.faults[0]
    assert "run.json is damaged" in error.value.faults[1]


def test_a_prior_is_the_same_through_json():
    prior = Prior("runs/a", (Candidate({"kind": "a", "size": 1}),), (-0.5,), 3, ("data",))
    told = info(prior=(prior,))
    assert RunInfo.from_dict(told.to_dict()).prior == (prior,)
