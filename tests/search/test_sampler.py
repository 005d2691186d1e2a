"""What each engine proposes: feasible, new each time, the same for the same seed, and everything before the end."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from small_search import ENGINES, THREE, problem_on, records_of, told_by_hand

from autopeft.candidates import Candidate
from autopeft.domains import Choices, Ordinal, Real, Whole
from autopeft.problem import Problem
from autopeft.search.codec import decode, distribution_of, encode
from autopeft.search.sampler import SAMPLERS, every_candidate
from autopeft.search.storage import sqlite_url
from autopeft.search.study import Study
from autopeft.space_file import parse_space


def proposals(problem, tmp_path, sampler, *, count, seed=0, name="study.db", fast=False):
    study = Study(
        problem, url="sqlite:///:memory:" if fast else sqlite_url(tmp_path / name), sampler=sampler, seed=seed
    )
    found = []
    for _ in range(count):
        proposal = study.ask()
        if proposal is None:
            break
        found.append(proposal)
        study.tell(told_by_hand(problem, proposal))
    return found


@pytest.mark.parametrize(("sampler", "limit"), [("known-cost", 1200), ("tpe", 1200), ("nsga2", 1200), ("random", 1200)])
def test_every_proposal_is_feasible_and_new(sampler, limit, bert, tmp_path):
    problem = problem_on(bert, limit=limit)
    found = proposals(problem, tmp_path, sampler, count=100, fast=True)
    assert len(found) == 100
    assert [p.number for p in found] == list(range(100))
    for proposal in found:
        cost = problem.cost(proposal.candidate)
        assert cost is not None
        assert 0 < cost.trainable_params <= limit
        assert problem.refusal(proposal.candidate) == ""
        values = proposal.candidate.values
        assert set(values) == {p.name for p in problem.space.active(values)}
        assert all(p.domain.holds(values[p.name]) for p in problem.space.active(values))
    assert len({problem.identity(p.candidate) for p in found}) == 100
    assert len({p.candidate["method"] for p in found}) > 1


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_only_what_is_active_is_drawn(sampler, bert, tmp_path):
    """A proposal needs one method's parameters; to draw those of all would be most of what it costs."""
    problem = problem_on(bert)
    draws: list[set[str]] = []

    def note(names):
        if "method" in names:  # every draw begins with it
            draws.append(set())
        draws[-1].update(names)

    def watched(seed):
        engine = SAMPLERS[sampler](seed)
        relative, single = engine.sample_relative, engine.sample_independent

        def sample_relative(study, trial, space):
            found = relative(study, trial, space)
            if found:
                note(found)
            return found

        def sample_independent(study, trial, name, distribution):
            note([name])
            return single(study, trial, name, distribution)

        engine.sample_relative, engine.sample_independent = sample_relative, sample_independent
        return engine

    proposals(problem, tmp_path, watched, count=40, fast=True)
    methods = [{name.partition(".")[0] for name in names if "." in name} for names in draws]
    assert len(methods) > 20
    assert all(len(one) == 1 for one in methods)


@pytest.mark.parametrize("sampler", ENGINES)
def test_the_same_seed_proposes_the_same_and_another_seed_does_not(sampler, bert, tmp_path):
    problem = problem_on(bert, limit=5000)
    problem = replace(problem, space=replace(problem.space, start=problem.space.start[:2]))
    one, same, other = (
        [p.candidate for p in proposals(problem, tmp_path, sampler, count=14, seed=seed, name=name, fast=True)]
        for seed, name in ((3, "a.db"), (3, "b.db"), (4, "c.db"))
    )
    assert one == same
    assert one != other


TINY = {
    "description": "few",
    "parameters": {
        "method": {"choices": ["lora", "ia3", "prompt_tuning"]},
        "lora.rank": {"ordinal": [1, 2, 4], "size": True},
        "lora.alpha": {"choices": ["r", "4"]},
        "lora.dora": {"choices": [False, True]},
        "ia3.kinds": {"ordinal": [0, 1], "per": "kinds", "size": True},
        "prompt_tuning.tokens": {"ordinal": [1, 2, 4, 8], "size": True},
    },
    "kinds": ["query", "value"],
    "start": [{"method": "ia3"}],
}


@pytest.mark.parametrize(
    ("sampler", "limit"),
    [
        ("known-cost", None),
        ("known-cost", 500),
        ("tpe", None),
        ("nsga2", None),
        ("random", None),
        ("random", 1000),
        ("tpe", 500),
    ],
)
def test_a_small_space_is_tried_whole_and_then_exhausted(sampler, limit, bert, tmp_path):
    """Against an enumeration by hand of all values; a candidate over the budget counts as what it is lowered to."""
    problem = problem_on(bert, space=TINY, limit=limit)
    combinations = [
        *({"method": "lora", "lora.rank": r, "lora.alpha": a, "lora.dora": d}
          for r, a, d in product((1, 2, 4), ("r", "4"), (False, True))),
        *({"method": "ia3", "ia3.kinds[query]": q, "ia3.kinds[value]": v} for q, v in product((0, 1), (0, 1))),
        *({"method": "prompt_tuning", "prompt_tuning.tokens": t} for t in (1, 2, 4, 8)),
    ]  # fmt: skip
    assert len(combinations) == 20
    candidates = [Candidate(values) for values in combinations]
    feasible = {problem.identity(c) for c in candidates if not problem.refusal(c)}
    found = proposals(problem, tmp_path, sampler, count=100, fast=True)
    assert len(found) == len(feasible)
    assert {problem.identity(p.candidate) for p in found} == feasible


def test_a_space_with_nothing_feasible_is_exhausted_at_once(bert, tmp_path):
    assert proposals(problem_on(bert, space=TINY, limit=340), tmp_path, "random", count=3) == []


def test_a_custom_space_of_every_kind_of_domain_is_proposed_from(tmp_path):
    space = parse_space(
        {
            "parameters": {
                "c": {"choices": ["a", "b", True, 3]},
                "o": {"ordinal": [0.5, 1, 2]},
                "r": {"low": 0.001, "high": 1, "log": True},
                "w": {"low": 1, "high": 1000, "integer": True, "log": True, "when": {"c": ["a", True]}},
            }
        }
    )
    problem = Problem(space, THREE)
    for sampler in ENGINES:
        found = proposals(problem, tmp_path, sampler, count=40, fast=True)
        assert len({p.candidate for p in found}) == 40
        assert all(("w" in p.candidate.values) == (p.candidate["c"] in ("a", True)) for p in found)


def test_every_candidate_of_a_small_space_is_given_once(bert):
    assert len(every_candidate(problem_on(bert, space=TINY).space, most=1000)) == 20
    assert every_candidate(problem_on(bert, space=TINY).space, most=19) == []
    assert every_candidate(problem_on(bert).space, most=10**6) == []


def test_an_ordinal_is_a_position_to_the_engine_and_a_value_to_us(bert):
    space = problem_on(bert).space
    for start in space.start:
        candidate = space.complete(start)
        assert decode(space, encode(space, candidate)) == candidate
    assert distribution_of(Ordinal((0, 8, 64))).high == 2
    assert distribution_of(Choices(("a", "b"))).choices == ("a", "b")
    assert distribution_of(Real(0.1, 10, log=True)).log
    assert distribution_of(Whole(2, 9)).low == 2


def test_engines_learn(bert, tmp_path):
    """After the start, engines propose better candidates than chance where quality is easy to see."""
    problem = problem_on(bert, limit=None)
    means = {}
    for sampler in ("known-cost", "tpe", "random"):
        found = proposals(problem, tmp_path, sampler, count=40, fast=True)
        scores = [r.values["quality"] for r in records_of(problem, found[-15:])]
        means[sampler] = sum(scores) / len(scores)
    assert means["tpe"] > means["random"]
    assert means["known-cost"] > means["random"]
