"""What earlier runs say, in the engine: where it looks first, and what it makes of a run that misleads."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from autopeft.candidates import Candidate
from autopeft.earlier import normal_scores
from autopeft.objectives import OBJECTIVES
from autopeft.problem import Problem
from autopeft.records import Prior, TrialRecord
from autopeft.search.engine import STARTUP, Observed
from autopeft.search.expectation import expected_from_earlier
from autopeft.search.known_cost import KnownCost
from autopeft.search.study import Study
from autopeft.space_file import parse_space

SPACE = {"x": {"low": 0.0, "high": 1.0}, "size": {"low": 1, "high": 1000, "integer": True, "log": True}}
COLD = Problem(
    parse_space({"parameters": SPACE}),
    (OBJECTIVES["quality"], OBJECTIVES["params"]),
    own_cost=lambda candidate: int(candidate["size"]),
)


def quality_of(candidate):
    return math.log(candidate["size"]) - 30 * (candidate["x"] - 0.7) ** 2


def drawn(n, *, seed):
    random = np.random.default_rng(seed)
    return [Candidate({"x": float(random.random()), "size": int(random.integers(1, 1000))}) for _ in range(n)]


def prior_of(n=40, *, sign=1, seed=7):
    """An earlier run of the same formula, in other units; with sign -1 of its opposite."""
    candidates = drawn(n, seed=seed)
    return Prior("earlier", tuple(candidates), tuple(normal_scores([-1000 * sign * quality_of(c) for c in candidates])))


def observed(n, *, seed=0):
    return [Observed(i, "complete", c, (quality_of(c), float(c["size"]))) for i, c in enumerate(drawn(n, seed=seed))]


def agreement(problem, trials):
    """Give how the model of quality ranks new candidates, against the truth: 1 is perfect."""
    engine, new = KnownCost(problem, seed=0), drawn(60, seed=99)
    belief = engine._believe(engine._results(trials)[1], aim="by ratio")
    rows = engine.rows.of(new)
    means, _ = belief.predict(rows.x, rows.exact)
    return spearmanr(means[:, 0], [-quality_of(c) for c in new]).statistic


def proposals(problem, n):
    """Search with the formula in place of trainings."""
    study, found = Study(problem, url="sqlite:///:memory:", sampler="known-cost", seed=0), []
    while len(found) < n and (proposal := study.ask()) is not None:
        found.append(proposal.candidate)
        values = {"quality": quality_of(proposal.candidate), "params": float(proposal.candidate["size"])}
        study.tell(TrialRecord(proposal.number, "complete", proposal.candidate, 0, values=values))
    study.close()
    return found


def test_the_first_proposals_are_of_the_earlier_front():
    prior = prior_of()
    found = proposals(replace(COLD, prior=(prior,)), STARTUP)
    assert set(found) <= set(prior.candidates)
    for candidate in found:  # by brute force: nothing there was better and smaller
        better = [
            c for c in prior.candidates if quality_of(c) > quality_of(candidate) and c["size"] < candidate["size"]
        ]
        assert not better
    assert found != proposals(COLD, STARTUP)


def test_an_earlier_run_that_ranks_alike_makes_a_few_results_go_far():
    trials = observed(6)
    assert agreement(replace(COLD, prior=(prior_of(),)), trials) > max(0.9, agreement(COLD, trials))


@pytest.mark.parametrize("n", [10, 24])
def test_a_run_that_misleads_is_unlearned(n):
    """Its ranks are the wrong way round; the model of quality ranks about as well as one that knows nothing."""
    cold, misled = (agreement(p, observed(n)) for p in (COLD, replace(COLD, prior=(prior_of(sign=-1),))))
    assert misled > cold - 0.1


def test_a_run_that_misleads_costs_little():
    best = {
        name: max(map(quality_of, proposals(problem, 24)))
        for name, problem in {"cold": COLD, "misled": replace(COLD, prior=(prior_of(sign=-1),))}.items()
    }
    assert best["misled"] > best["cold"] - 0.3  # of a range of thirty


def test_what_has_no_say_is_not_heard():
    """An earlier run without any order changes no ranking of a model with results of its own."""
    candidates = drawn(40, seed=7)
    noise = np.random.default_rng(3).standard_normal(40)
    told = replace(COLD, prior=(Prior("noise", tuple(candidates), tuple(normal_scores(noise.tolist()))),))
    assert agreement(told, observed(24)) == pytest.approx(agreement(COLD, observed(24)), abs=0.1)


def test_several_runs_are_weighed_each_for_itself():
    both = replace(COLD, prior=(prior_of(sign=-1, seed=3), prior_of(seed=8)))
    assert agreement(both, observed(8)) > 0.85


def test_earlier_trials_are_no_results():
    """Neither the front nor the scales nor what is known to fail has anything of them."""
    engine = KnownCost(replace(COLD, prior=(prior_of(),)), seed=0)
    done, results = engine._results(observed(8))
    assert done == [t.candidate for t in observed(8)]
    assert len(results.losses) == len(results.exact) == 8
    assert len(engine._believe(results, aim="by ratio").front) == 8


def test_another_engine_object_proposes_the_same_from_the_same_trials():
    problem = replace(COLD, prior=(prior_of(),))
    old = KnownCost(problem, seed=0)
    for n in (4, 8, 14):
        old.propose(observed(n), number=n, accepts=lambda c: True)
    new = KnownCost(problem, seed=0)
    trials = observed(20)
    assert old.propose(trials, number=20, accepts=lambda c: True) == new.propose(
        trials, number=20, accepts=lambda c: True
    )


def test_scores_are_read_by_the_results_that_there_are():
    """One run ranks as the results do, one the other way round; what is known of each is a line, by least squares."""
    target = np.array([1.0, 2.0, 4.0, 3.0, 6.0, 5.0, 8.0])
    guess = np.stack([target / 10 + [0.1, -0.1, 0, 0.1, -0.1, 0, 0], -target], axis=1)
    own = np.array([[0.5, np.nan], [0.1, np.nan], [np.nan, -20.0]])
    expected, doubt = expected_from_earlier(guess, target, own)
    slope, intercept = np.polyfit(guess[:, 0], target, 1)
    np.testing.assert_allclose(expected, [intercept + slope * 0.5, intercept + slope * 0.1, 20.0])
    off = ((target - intercept - slope * guess[:, 0]) ** 2).sum() / 5
    assert doubt[0] == doubt[1] == pytest.approx((off / (1 - off / target.var(ddof=1))) ** 0.5)
    assert doubt[2] == pytest.approx(0, abs=1e-6)


def test_a_run_that_explains_nothing_says_nothing():
    target = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    guess = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    expected, doubt = expected_from_earlier(guess[:, None], target, np.array([[1.0], [0.5]]))
    assert np.isnan(expected).all()
    assert np.isnan(doubt).all()
    assert np.isnan(expected_from_earlier(guess[:4, None], target[:4], np.array([[1.0]]))[0]).all()  # too few
