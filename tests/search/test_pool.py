"""What the engine chooses among: complete, within the budget, and near its parents where it is mutated."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from small_search import THREE, problem_on

from autopeft.problem import Problem
from autopeft.search.pool import Pool
from autopeft.space_file import parse_space


def is_of(problem, candidate):
    active = problem.space.active(candidate.values)
    return {p.name for p in active} == set(candidate.values) and all(p.domain.holds(candidate[p.name]) for p in active)


@pytest.mark.parametrize("limit", [None, 1200])
def test_fresh_and_mutated_candidates_are_complete_within_the_budget_and_different(limit, bert):
    problem = problem_on(bert, limit=limit)
    pool, random = Pool(problem), Random(0)
    fresh = pool.fresh(150, random)
    mutants = pool.mutants(fresh[:10], 150, seed="0")
    assert len(fresh) == 150
    assert 140 <= len(mutants) <= 150  # but those that are one of the other parents
    for found in (fresh, mutants):
        assert len({candidate.key for candidate in found}) == len(found)
        assert all(is_of(problem, candidate) for candidate in found)
        assert all(0 < problem.cost(c).trainable_params <= (limit or 1e9) for c in found)
    assert not {c.key for c in mutants} & {c.key for c in fresh[:10]}
    assert len({c["method"] for c in fresh}) > 20


def test_mutants_of_a_parent_are_the_same_whatever_was_asked_for_before(bert):
    """Proposals share them, and a resumed search has not seen what the one before asked for."""
    problem = problem_on(bert, limit=1200)
    parents = Pool(problem).fresh(6, Random(0))
    used = Pool(problem)
    used.mutants(parents[3:], 20, seed="lot 0")
    used.mutants(parents, 12, seed="lot 1")
    used.mutants(parents[::-1], 120, seed="lot 1")
    asked = used.mutants(parents, 60, seed="lot 1")
    assert asked == Pool(problem).mutants(parents, 60, seed="lot 1")
    assert asked != used.mutants(parents, 60, seed="lot 2")


def test_mutants_that_are_hard_to_find_are_the_same_too():
    space = parse_space({"parameters": {"a": {"ordinal": [1, 2]}, "b": {"choices": ["x", "y"]}}})
    problem = Problem(space, THREE)
    parent = space.complete({})
    used = Pool(problem)
    for count in (1, 3, 50, 2):
        assert used.mutants([parent], count, seed="0") == Pool(problem).mutants([parent], count, seed="0")


def test_mutants_are_near_their_parent(bert):
    problem = problem_on(bert)
    parent = problem.space.complete({"method": "lora"})
    mutants = [c for c in Pool(problem).mutants([parent], 200, seed="0") if c["method"] == "lora"]
    changed = [{p.base for p in problem.space if c.values.get(p.name) != parent.values.get(p.name)} for c in mutants]
    assert max(map(len, changed)) <= 2
    assert len({frozenset(names) for names in changed}) > 8
    rates = [c["lr_multiple"] for c in mutants if c["lr_multiple"] != 1]
    assert 0.3 < sorted(rates)[len(rates) // 2] < 3


def test_a_setting_is_carried_over_to_another_method(bert):
    problem = problem_on(bert)
    parent = problem.space.complete({"method": "lora", "lora.rank": 2, "lr_multiple": 7.0})
    others = [c for c in Pool(problem).mutants([parent], 600, seed="0") if c["method"] == "lokr"]
    ranks = [v for c in others for name, v in c.values.items() if name.startswith("lokr.rank")]
    assert ranks
    assert set(ranks) == {2}


def test_drawn_alike_ranks_differ_in_what_they_come_to():
    """Each drawn for itself, the sums of twelve would hardly differ: their spread would be a seventh of the mean."""
    space = parse_space({"parameters": {f"rank{i}": {"ordinal": [0, 1, 2, 3, 4, 5]} for i in range(12)}})
    sums = sorted(sum(c.values.values()) for c in Pool(Problem(space, THREE)).fresh(300, Random(0)))
    assert sums[30] < 15
    assert sums[-15] > 40


def test_a_space_of_few_candidates_gives_them_all_and_ends():
    space = parse_space(
        {"parameters": {"a": {"choices": [True, "x"]}, "b": {"ordinal": [1, 2], "when": {"a": [True]}}}}
    )
    problem = Problem(space, THREE)
    found = Pool(problem).fresh(50, Random(0))
    assert len(found) == 3
    assert all(is_of(problem, candidate) for candidate in found)
    assert len(Pool(problem).mutants(found[:1], 50, seed="0")) <= 2
    assert Pool(problem).mutants([], 5, seed="0") == []


def test_every_member_of_a_family_is_mutated_as_often():
    layers = {f"l{i}.rank": {"ordinal": list(range(9)), "default": 4} for i in range(8)}
    space = parse_space({"parameters": {"rate": {"low": 0.0, "high": 1.0}, **layers}})
    problem = Problem(space, THREE, own_cost=lambda c: 1 + sum(int(v) for n, v in c.values.items() if n != "rate"))
    parent, changed = space.complete({"rate": 0.5}), Counter()
    for seed in range(12):
        for mutant in Pool(problem).mutants([parent], 100, seed=str(seed)):
            different = [name for name in layers if mutant[name] != parent[name]]
            changed.update(different if len(different) == 1 else ())
    assert len(changed) == 8
    assert max(changed.values()) < 2 * min(changed.values())
