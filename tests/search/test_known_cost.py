"""The engine as a whole: what it takes as known, what it learns, and that it finds fronts sooner than chance."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from random import Random

import numpy as np
import pytest
import synthetic

from autopeft.candidates import Candidate
from autopeft.errors import RequestError
from autopeft.objectives import OBJECTIVES, Objective
from autopeft.pareto import on_front
from autopeft.problem import Problem
from autopeft.records import TrialRecord
from autopeft.search.belief import CONDITIONED
from autopeft.search.engine import Observed
from autopeft.search.engine_sampler import EngineSampler
from autopeft.search.expectation import expected_from_partial
from autopeft.search.known_cost import KnownCost, Options, _kept
from autopeft.search.nehvi import Nehvi
from autopeft.search.pool import Pool
from autopeft.search.rows import CandidateRows
from autopeft.search.study import Study
from autopeft.space_file import parse_space

TWO = (OBJECTIVES["quality"], OBJECTIVES["params"])
SPACE = {"x": {"low": 0.0, "high": 1.0}, "size": {"low": 1, "high": 1000, "integer": True, "log": True}}


def size_of(candidate):
    return int(candidate["size"])


def problem_of(parameters=SPACE, objectives=TWO, cost=size_of):
    return Problem(parse_space({"parameters": parameters}), objectives, own_cost=cost)


def quality_of(candidate):
    return math.log(candidate["size"]) - 10 * (candidate["x"] - 0.7) ** 2


def observed(n, *, seed=0, state="complete", values=lambda c: (quality_of(c), float(c["size"]))):
    random = np.random.default_rng(seed)
    drawn = [Candidate({"x": float(random.random()), "size": int(random.integers(1, 1000))}) for _ in range(n)]
    return [Observed(i, state, c, values(c) if state == "complete" else ()) for i, c in enumerate(drawn)]


def worth(engine, trials, *candidates):
    """Give what an engine expects of candidates: the logarithm of the volume that they would add."""
    return engine._score(engine._believe(engine._results(trials)[1], aim="by ratio"), engine.rows.of(candidates))


def predicted(belief, engine, candidates):
    """Give the means and deviations that are believed of candidates."""
    rows = engine.rows.of(candidates)
    return belief.predict(rows.x, rows.exact)


def proposals(problem, n, measure, *, seed=0, sampler="known-cost"):
    """Search with values in place of trainings; None is a failure."""
    study, found = Study(problem, url="sqlite:///:memory:", sampler=sampler, seed=seed), []
    while len(found) < n and (proposal := study.ask()) is not None:
        found.append(proposal.candidate)
        values = measure(proposal.candidate)
        told = {} if values is None else dict(zip((o.name for o in problem.objectives), values, strict=True))
        state = "complete" if told else "failed"
        study.tell(TrialRecord(proposal.number, state, proposal.candidate, 0, values=told))
    study.close()
    return found


def test_the_parameters_are_known_and_quality_is_learned():
    engine = KnownCost(problem_of(), seed=0)
    _, results = engine._results(observed(12))
    assert results.known.tolist() == [False, True]
    belief = engine._believe(results, aim="by ratio")
    new = [c.candidate for c in observed(5, seed=1)]
    means, deviations = predicted(belief, engine, new)
    assert (deviations[:, 0] > 0).all()
    assert (deviations[:, 1] == 0).all()
    assert means[:, 1] == pytest.approx(np.log([c["size"] for c in new]))  # parameters are compared by ratio


def test_a_cost_that_is_not_what_was_measured_is_learned():
    """A custom runner may count otherwise than the cost function that came with it."""
    engine = KnownCost(problem_of(), seed=0)
    trials = observed(12, values=lambda c: (quality_of(c), c["size"] * 1.5))
    assert engine._results(trials)[1].known.tolist() == [False, False]


def test_without_a_cost_function_everything_is_learned_and_still_searched():
    found = proposals(problem_of(cost=None), 25, lambda c: (quality_of(c), float(c["size"])))
    assert len({c.key for c in found}) == 25


def test_the_front_is_found_sooner_than_by_chance():
    """Of the made-up PEFT search: 12 layers, 4 methods, 3 bit-widths, a hard budget, noise; the mean of two seeds."""
    shares = {
        engine: np.mean([synthetic.search(engine, seed=seed, trials=[32])[0][1] for seed in range(2)])
        for engine in ("known-cost", "random")
    }
    assert shares["known-cost"] > shares["random"] + 0.15


def test_a_region_that_fails_is_left_alone():
    """Of what would be best half cannot be trained; failures are told apart from what was never tried."""

    def measure(candidate):
        return None if candidate["x"] > 0.6 else (quality_of(candidate), float(candidate["size"]))

    found = proposals(problem_of(), 40, measure)
    assert sum(c["x"] > 0.6 for c in found[20:]) <= 10  # all 20 where failures teach nothing


TRAP = {
    "family": {"choices": ["dear", "cheap"]},
    "rate": {"low": 1e-5, "high": 1e-1, "log": True},
    "rank": {"ordinal": [1, 2, 4, 8, 16, 32, 64], "when": {"family": ["dear"]}},
    "tokens": {"ordinal": [1, 2, 4, 8, 16, 32], "when": {"family": ["cheap"]}},
}


@pytest.mark.parametrize("seed", [3, 8, 9])
def test_a_cheap_point_that_is_found_first_does_not_hold_the_search(seed):
    """With the reference just behind the front all that is dearer was worth nothing: 36 of 40 proposals went there."""

    def size(candidate):
        return 400 * candidate["rank"] if candidate["family"] == "dear" else 64 * candidate["tokens"]

    def worth(candidate):
        dear = candidate["family"] == "dear"
        most, capacity = (0.35, candidate["rank"]) if dear else (0.15, candidate["tokens"])
        gain = most * (1 - math.exp(-capacity / 12))
        return 0.55 + gain - 0.3 * (math.log10(candidate["rate"]) - (-2.7 if dear else -1.6)) ** 2

    noise = np.random.default_rng(seed)
    found = proposals(
        problem_of(TRAP, cost=size),
        40,
        lambda c: (worth(c) + 0.008 * noise.standard_normal(), float(size(c))),
        seed=seed,
    )
    assert sum(size(c) == 64 for c in found) < 12
    assert max(map(worth, found)) > 0.65


def test_costs_are_compared_by_ratio_and_by_difference_in_turn():
    """Among like gains the ratio favours the small, the difference leaves all but the large alike."""
    trials = observed(40)
    engine = KnownCost(problem_of(), seed=0)
    sizes = [engine.propose(trials, number=40 + i, accepts=lambda c: True)["size"] for i in range(12)]
    assert np.median(sizes[0::2]) < np.median(sizes[1::4])


def test_every_fourth_proposal_is_for_the_best_quality_whatever_it_costs():
    """Most of the front's volume is at small sizes; the best quality is at the largest, with x near .7."""
    engine = KnownCost(problem_of(), seed=0)
    best = [engine.propose(observed(40), number=43 + 4 * i, accepts=lambda c: True) for i in range(4)]
    assert all(c["size"] > 700 and abs(c["x"] - 0.7) < 0.15 for c in best)


def latency_of(candidate):
    return 5.0 + 3 * (candidate["size"] % 7)  # nothing that a model could learn of sizes


def three(known):
    latency = Objective("latency", "minimize", "ms", lambda m: m.train_seconds, known)
    return problem_of(objectives=(*TWO, latency))


@pytest.mark.parametrize(
    ("known", "is_known"),
    [(latency_of, True), (None, False), (lambda c: latency_of(c) + 1e-3, False)],
    ids=["right", "none", "wrong"],
)
def test_an_objective_that_is_known_beforehand_is_not_learned_unless_it_was_wrong(known, is_known):
    engine = KnownCost(three(known), seed=0)
    trials = observed(20, values=lambda c: (quality_of(c), float(c["size"]), latency_of(c)))
    _, results = engine._results(trials)
    assert results.known.tolist() == [False, True, is_known]
    new = [c.candidate for c in observed(30, seed=1)]
    means, deviations = predicted(engine._believe(results, aim="by difference"), engine, new)
    assert bool((deviations[:, 2] == 0).all()) == is_known
    off = np.abs(means[:, 2] - [latency_of(c) for c in new])
    assert bool((off < 1e-9).all()) == is_known
    assert engine.propose(trials, number=20, accepts=lambda c: True) is not None


def test_a_known_value_to_be_maximised_is_turned_like_its_measurements():
    speed = Objective("speed", "maximize", "rows/s", lambda m: 0.0, lambda c: 1000.0 / c["size"])
    engine = KnownCost(problem_of(objectives=(TWO[0], speed)), seed=0)
    trials = observed(12, values=lambda c: (quality_of(c), 1000.0 / c["size"]))
    assert engine._results(trials)[1].known.tolist() == [False, True]


@pytest.mark.parametrize(
    ("known", "why"),
    [(lambda c: math.nan, "gave nan"), (lambda c: c["missing"], "KeyError"), (lambda c: "much", "ValueError")],
)
def test_a_fault_in_what_is_known_is_told(known, why):
    with pytest.raises(RequestError, match=f"`known` of latency.*{why}.*x=0"):
        CandidateRows(three(known)).of([Candidate({"x": 0.5, "size": 3})])


@pytest.mark.parametrize(("limit", "hopeless"), [(2000, False), (60, True)])
def test_a_cost_that_nobody_met_is_worth_its_quality_up_to_the_budget(limit, hopeless):
    trials = [t for t in observed(60) if t.candidate["size"] < 50]
    trials += [
        Observed(100 + i, "complete", c, (quality_of(c), float(c["size"])))
        for i, c in enumerate(Candidate({"x": i / 12, "size": 4 * i + 1}) for i in range(12))
    ]
    engine = KnownCost(replace(problem_of(), parameter_limit=limit), seed=0)
    assert bool(worth(engine, trials, Candidate({"x": 0.7, "size": 900}))[0] == -np.inf) == hopeless


def test_what_is_not_done_counts_among_the_first_costs_too():
    """Or all workers, and all that pause at a rung, would begin with the dearest."""
    engine = KnownCost(problem_of(), seed=0)
    running = observed(1, state="running")
    running = [replace(running[0], candidate=Candidate({"x": 0.5, "size": 1000}))]
    sizes = [engine.propose(t, number=1, accepts=lambda c: True)["size"] for t in ([], running)]
    assert sizes[0] > 500
    assert sizes[1] < 10


def test_the_first_candidates_span_the_costs():
    """Six chance draws of sizes of a hundred layers each would all be middling."""
    layers = {f"layer{i}.rank": {"ordinal": [0, 1, 2, 4, 8, 16, 32]} for i in range(12)}
    problem = problem_of(layers, cost=lambda c: 1 + sum(c.values.values()))
    sizes = [1 + sum(c.values.values()) for c in proposals(problem, 6, lambda c: (0.0, 1.0 + sum(c.values.values())))]
    drawn = [1 + sum(c.values.values()) for c in Pool(problem).fresh(32, Random(0))]
    assert max(sizes) >= np.quantile(drawn, 0.9)
    assert min(sizes) <= np.quantile(drawn, 0.1)


def test_what_is_under_way_is_not_proposed_again():
    engine = KnownCost(problem_of(), seed=0)
    trials = observed(15)
    first = engine.propose(trials, number=15, accepts=lambda c: True)
    before = worth(engine, trials, first)[0]
    running = [*trials, Observed(15, "running", first)]
    assert worth(engine, running, first)[0] < before - 1
    second = engine.propose(running, number=16, accepts=lambda c: True)
    assert abs(second["x"] - first["x"]) + abs(math.log(second["size"] / first["size"])) > 0.05


def test_where_no_draw_fits_the_front_is_still_mutated():
    names = "abcdef"
    space = parse_space({"parameters": {name: {"low": 0, "high": 1} for name in names}})
    problem = Problem(space, TWO, own_cost=lambda c: 5 + int(1000 * sum(c.values.values())), parameter_limit=20)
    tried = [Candidate({name: i / 1000 if name == "a" else 0.0 for name in names}) for i in range(8)]
    trials = [Observed(i, "complete", c, (0.1 * i, 5.0 + i)) for i, c in enumerate(tried)]
    engine = KnownCost(problem, seed=0)
    proposed = engine.propose(trials, number=9, accepts=lambda c: c not in tried)
    assert not engine._drawn(9).candidates
    assert proposed is not None
    assert problem.adapter_params(proposed) <= 20


def test_only_what_is_accepted_is_proposed():
    engine = KnownCost(problem_of(), seed=0)
    found = engine.propose(observed(15), number=15, accepts=lambda c: c["size"] % 2 == 0)
    assert found["size"] % 2 == 0
    assert engine.propose(observed(15), number=15, accepts=lambda c: False) is None


def test_the_gain_expected_is_that_of_what_is_proposed():
    """Else a search whose pool holds known candidates, better than any new one, would never converge."""
    engine = KnownCost(problem_of(), seed=0)
    trials = observed(15)
    best = engine.propose(trials, number=15, accepts=lambda c: True)
    free = engine.expected_gain
    engine.propose(trials, number=15, accepts=lambda c: abs(c["x"] - best["x"]) > 0.5)
    assert engine.expected_gain < 0.9 * free
    assert engine.propose(trials, number=15, accepts=lambda c: False) is None
    assert engine.expected_gain is None


def test_an_engine_that_served_another_study_proposes_the_same():
    used = KnownCost(problem_of(), seed=0)
    used.propose(observed(20, seed=9), number=20, accepts=lambda c: True)
    trials = observed(20)
    assert used.propose(trials, number=20, accepts=lambda c: True) == KnownCost(problem_of(), seed=0).propose(
        trials, number=20, accepts=lambda c: True
    )


def test_another_engine_object_proposes_the_same_from_the_same_trials():
    """Nothing that is kept between proposals decides anything: a resumed search goes on as it would have."""
    old = KnownCost(problem_of(), seed=0)
    for n in (8, 20, 33):
        old.propose(observed(n), number=n, accepts=lambda c: True)
    trials = observed(40)
    new = KnownCost(problem_of(), seed=0)
    assert old.propose(trials, number=40, accepts=lambda c: True) == new.propose(
        trials, number=40, accepts=lambda c: True
    )


def test_a_paused_candidate_is_judged_by_what_it_has_shown():
    def curve(trial, shown):
        return Observed(trial.number, "complete", trial.candidate, trial.values, {10: shown})

    done = [curve(trial, 3 - trial.values[0] / 2) for trial in observed(15)]
    pair = [Candidate({"x": 0.35, "size": 500}), Candidate({"x": 0.95, "size": 500})]
    engine = KnownCost(problem_of(), seed=0)

    def ahead(*shown):
        waiting = [Observed(20 + i, "running", pair[i], (), {10: loss}) for i, loss in enumerate(shown)]
        belief = engine._believe(engine._results([*done, *waiting])[1], aim="by ratio")
        means, _ = predicted(belief, engine, pair)
        return means[1, 0] - means[0, 0]

    assert ahead(0.0, 2.5) > ahead() > ahead(2.5, 0.0)


def test_what_waits_at_a_rung_counts_as_taken_at_its_expected_end():
    """To the engine it is under way; what it would gain is no reason to propose its like."""
    done = [Observed(t.number, "complete", t.candidate, t.values, {10: 3 - t.values[0] / 2}) for t in observed(15)]
    candidate = Candidate({"x": 0.7, "size": 900})
    engine = KnownCost(problem_of(), seed=0)

    def gain(*waiting):
        return worth(engine, [*done, *waiting], candidate)[0]

    shown = 3 - quality_of(candidate) / 2
    assert gain(Observed(20, "running", candidate, (), {10: shown})) < gain() - 0.5


def test_a_partial_result_counts_once():
    """What has paused is known as far as it has shown, with the doubt of that; not again as if it had ended so."""
    wobble = np.random.default_rng(5).standard_normal(15)

    def curve(trial, off):
        return Observed(trial.number, "complete", trial.candidate, trial.values, {10: 3 - trial.values[0] / 2 + off})

    done = [curve(trial, off) for trial, off in zip(observed(15), wobble, strict=True)]
    candidate = Candidate({"x": 0.05, "size": 20})
    engine = KnownCost(problem_of(), seed=0)

    def deviation(state, partial):
        _, results = engine._results([*done, Observed(20, state, candidate, (), partial)])
        belief = engine._believe(results, aim="by ratio")
        return predicted(belief, engine, [candidate])[1][0, 0]

    assert deviation("running", {10: 2.0}) == pytest.approx(deviation("paused", {10: 2.0}))
    assert deviation("running", {}) < 0.8 * deviation("running", {10: 2.0})  # nothing shown: taken to end as expected


def test_a_long_search_is_learned_from_a_part_of_its_trials():
    """The whole front, and of what waits at a rung what has come furthest; the rest is an even choice."""
    engine = KnownCost(problem_of(), seed=0)
    done = observed(2 * CONDITIONED)
    waiting = [
        Observed(1000 + i, "running", t.candidate, (), {30: 1.0} if i % 10 == 0 else {10: 1.0})
        for i, t in enumerate(observed(CONDITIONED, seed=1))
    ]
    under_way = Observed(999, "running", Candidate({"x": 0.123, "size": 77}))
    _, results = engine._results([*done, under_way, *waiting])
    assert len(results.unfinished) == CONDITIONED // 2
    assert sum(30 in partial for partial in results.unfinished_partial) == -(-CONDITIONED // 10)
    assert {} in results.unfinished_partial
    belief = engine._believe(results, aim="by ratio")
    assert len(belief.rows) == CONDITIONED
    assert set(np.flatnonzero(on_front(results.losses))) <= set(belief.rows.tolist())
    assert len(belief.front) == CONDITIONED + CONDITIONED // 2
    assert engine.propose([*done, *waiting, under_way], number=6000, accepts=lambda c: True) is not None


def test_what_trains_now_and_what_came_furthest_are_kept_of_many():
    tried = [trial.candidate for trial in observed(400)]
    waiting = [
        Observed(1 + i, "running", c, (), {10: 1.0, 30: 1.0} if i % 2 else {10: 1.0}) for i, c in enumerate(tried)
    ]
    furthest = Observed(500, "running", tried[0], (), {10: 1.0, 30: 1.0, 60: 1.0})
    first = Observed(0, "running", tried[1])
    kept = _kept([first, furthest, *waiting], 50)
    assert len(kept) == 50
    assert first in kept
    assert furthest in kept
    assert all(30 in trial.partial for trial in kept if trial is not first)
    assert [trial.number for trial in kept] == sorted(trial.number for trial in kept)


def test_rows_of_trials_are_the_same_however_they_were_asked_for():
    rows, trials = CandidateRows(problem_of()), observed(300)
    some = rows.of_trials(trials[200:210])
    whole = rows.of_trials(trials)
    alone = CandidateRows(problem_of()).of([trial.candidate for trial in trials])
    kept = alone.x.astype(np.float32)
    assert np.array_equal(whole[0], kept)
    assert np.array_equal(whole[1], alone.exact)
    assert np.array_equal(some[0], kept[200:210])
    changed = Observed(5, "running", trials[6].candidate)
    assert np.array_equal(rows.of_trials([changed])[0], kept[6:7])


@pytest.mark.parametrize("first", [1, True])
def test_one_and_true_are_two_candidates(first):
    """A choice may have both, and then they may cost and mean something else."""
    cost = {"1": 1000, "True": 5}
    problem = problem_of({"a": {"choices": [1, True]}, "x": {"low": 0, "high": 1}}, cost=lambda c: cost[str(c["a"])])
    rows = CandidateRows(problem)
    rows.of([Candidate({"a": first, "x": 0.5})])
    assert rows.of([Candidate({"a": a, "x": 0.5}) for a in (1, True)]).exact[:, 1].tolist() == [1000, 5]
    assert problem.smallest()[1] == 5


def test_what_is_remembered_of_candidates_is_forgotten_with_each_lot():
    """Or a long search would keep every candidate that it ever looked at."""
    engine, trials = KnownCost(problem_of(), seed=0), observed(20)
    held = []
    for number in range(20, 20 + 8 * 32, 32):
        engine.propose(trials, number=number, accepts=lambda c: True)
        held.append(len(engine.rows._computed))
    assert max(held) < 2 * min(held)


def test_rows_are_in_the_order_asked_for_whatever_was_computed_before():
    candidates = [trial.candidate for trial in observed(40)]
    alone, rows = CandidateRows(problem_of()).of(candidates), CandidateRows(problem_of())
    rows.of(candidates[10:20])
    order = [30, 12, 12, 3, 19, 0]
    again = rows.of([candidates[i] for i in order])
    rows.forget()
    anew = rows.of([candidates[i] for i in order])
    for read in (again, anew):
        assert np.array_equal(read.x, alone.x[order])
        assert np.array_equal(read.exact, alone.exact[order])
    assert rows.of([]).x.shape == (0, alone.x.shape[1])


def test_partial_results_are_read_by_those_that_went_on():
    known = [{5: float(loss)} for loss in range(6)]
    target = np.array([2.0 * loss + 1 for loss in range(6)])
    expected, deviation = expected_from_partial(known, target, [{5: 2.5}, {5: 100.0}, {7: 1.0}])
    assert expected[0] == pytest.approx(6.0)
    assert expected[1] == 11  # nothing ended worse
    assert np.isnan(expected[2])  # nobody went on from there
    assert deviation[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("parameters", "objectives", "measure", "count"),
    [
        ({"a": {"choices": ["x"]}}, ["max"], lambda c: (1.0,), 1),
        ({"a": {"choices": ["x", "y"]}, "b": {"ordinal": [0, 1, 2]}}, ["max"], lambda c: (float(c["b"]),), 6),
        ({"a": {"low": 0.0, "high": 1.0}}, ["min"], lambda c: (c["a"],), 14),
        ({"a": {"low": 0.0, "high": 1.0}}, ["max", "min"], lambda c: (1.0, 5.0), 14),
        ({"a": {"low": 0.0, "high": 1.0}}, ["max"], lambda c: None, 14),
        ({f"c{i}": {"choices": [1, 2, 3]} for i in range(5)}, ["max"], lambda c: (c["c1"] - c["c2"],), 14),
        ({"a": {"low": -5, "high": 5, "integer": True}}, ["max", "min"], lambda c: (1e300 * c["a"], -c["a"]), 11),
        (
            {f"x{i}": {"low": 0.0, "high": 1.0} for i in range(4)},
            ["min", "max", "min", "max"],
            lambda c: tuple(c[f"x{i}"] for i in range(4)),
            14,
        ),
        (
            {"m": {"choices": [*"abcdefghij"]}}
            | {f"{m}.x{i}": {"low": 0.0, "high": 1.0} for m in "abcdefghij" for i in range(5)},
            ["max", "min"],
            lambda c: (sum(v for n, v in c.values.items() if n != "m"), float("abcdefghij".index(c["m"]))),
            14,
        ),
    ],
)
def test_odd_spaces_and_results_are_searched_to_their_end(parameters, objectives, measure, count):
    goals = {"max": "maximize", "min": "minimize"}
    named = tuple(Objective(f"o{i}", goals[goal], "s", lambda m: 0.0) for i, goal in enumerate(objectives))
    found = proposals(problem_of(parameters, named, None), min(count + 1, 14), measure)
    assert len(found) == count
    assert len({c.key for c in found}) == count


def test_parts_can_be_switched_off():
    trials = observed(16)
    whole, fresh_only, learned = (
        KnownCost(problem_of(), seed=0, options=options)
        for options in (Options(), Options(mutations=False), Options(known_costs=False))
    )
    assert learned._results(trials)[1].known.tolist() == [False, False]
    accepts = partial(lambda c: True)
    numbers = range(16, 128, 4)  # which all aim alike
    best = [whole.propose(trials, number=n, accepts=accepts) for n in numbers]
    fresh = [fresh_only.propose(trials, number=n, accepts=accepts) for n in numbers]
    gained = worth(whole, trials, *best) - worth(whole, trials, *fresh)
    assert gained.min() >= 0
    assert gained.max() > 0


@pytest.mark.parametrize("objectives", [TWO, TWO[:1]])
def test_the_peer_searches_too(objectives):
    """AutoPEFT's engine: all learned, several and one objective, with a trial under way."""
    problem = problem_of(objectives=objectives)
    trials = observed(10, values=lambda c: (quality_of(c), float(c["size"]))[: len(objectives)])
    engine = Nehvi(problem, seed=0)
    first = engine.propose(trials, number=10, accepts=lambda c: True)
    again = Nehvi(problem, seed=0).propose(trials, number=10, accepts=lambda c: True)
    assert first == again
    second = engine.propose([*trials, Observed(10, "running", first)], number=10, accepts=lambda c: True)
    assert second != first


def test_an_engine_can_be_given_to_a_study():
    def engine(seed):
        return EngineSampler(partial(KnownCost, options=Options(fresh=50, mutants=50)), seed=seed)

    found = proposals(problem_of(), 10, lambda c: (quality_of(c), float(c["size"])), sampler=engine)
    assert len(found) == 10
