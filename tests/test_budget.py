"""Projection into a budget and the smallest configuration, against enumeration of tiny spaces."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.binding import bind_space
from autopeft.budget import project, smallest
from autopeft.candidates import Candidate
from autopeft.domains import Choices, Ordinal
from autopeft.plans import plan_of
from autopeft.space import Parameter, Space
from autopeft.space_file import load_space, parse_space


def count_on(anatomy):
    return lambda candidate: plan_of(candidate, anatomy).adapter_params


@pytest.fixture(scope="session")
def default(bert):
    return bind_space(load_space("default"), bert, cuda=True)


@pytest.fixture(scope="session")
def draw_candidate(default):
    """Draw any candidate of the default space on BERT."""

    def draw(data):
        values = {}
        for parameter in default:
            if all(values.get(name) in allowed for name, allowed in parameter.when.items()):
                domain = parameter.domain
                listed = isinstance(domain, Choices | Ordinal)
                values[parameter.name] = data.draw(st.sampled_from(domain.values)) if listed else 1.0
        return Candidate(values)

    return draw


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(1, 60_000))
def test_a_projected_candidate_fits_trains_something_and_never_grows(draw_candidate, default, bert, data, limit):
    candidate, count = draw_candidate(data), count_on(bert)
    fitted = project(default, candidate, count=count, limit=limit)
    if 0 < count(candidate) <= limit:
        assert fitted == candidate
    if fitted is None:
        return
    assert 0 < count(fitted) <= limit
    assert fitted.values.keys() == candidate.values.keys()
    for parameter in default.active(candidate.values):
        was, now = candidate[parameter.name], fitted[parameter.name]
        assert parameter.domain.holds(now)
        assert now <= was if parameter.size else now == was
        if parameter.size and was == 0:
            assert now == 0
    assert project(default, fitted, count=count, limit=limit) == fitted


def test_layers_of_one_size_are_turned_off_evenly():
    ranks = [f"layer{i}.rank" for i in range(12)]
    parameters = {"rate": {"low": 0, "high": 1}} | {name: {"ordinal": [0, 1], "size": True} for name in ranks}
    space = parse_space({"parameters": parameters})
    turned_off: Counter[str] = Counter()
    for i in range(1200):
        candidate = Candidate({"rate": i / 1200, **dict.fromkeys(ranks, 1)})
        fitted = project(space, candidate, count=lambda c: sum(c[name] for name in ranks), limit=11)
        turned_off.update(name for name in ranks if fitted[name] == 0)
    assert sum(turned_off.values()) == 1200
    assert max(turned_off.values()) < 2 * min(turned_off.values())


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 60_000))
def test_a_projected_candidate_uses_what_the_budget_allows(draw_candidate, default, bert, data, limit):
    """No single size can be one level higher, of those that are not what was asked for."""
    candidate, count = draw_candidate(data), count_on(bert)
    fitted = project(default, candidate, count=count, limit=limit)
    if fitted is None or fitted == candidate:
        return
    for parameter in default.active(candidate.values):
        if parameter.size and fitted[parameter.name] < candidate[parameter.name]:
            values = parameter.domain.values
            higher = values[values.index(fitted[parameter.name]) + 1]
            raised = Candidate({**fitted.values, parameter.name: higher})
            # A level that changes nothing, such as a rank where every share is off, may be left alone.
            assert count(raised) > limit or count(raised) == count(fitted)


def _weighed(ordinals, weights, limit):
    """A toy: trained parameters are the weighed sum of the sizes."""
    parameters = tuple(
        Parameter(f"s{i}", Ordinal(v), v[0], {}, size=True, base=f"s{i}") for i, v in enumerate(ordinals)
    )
    return Space(parameters), lambda c: int(sum(w * c[f"s{i}"] for i, w in enumerate(weights))), limit


ordinals = st.lists(st.integers(0, 6), min_size=1, max_size=4, unique=True).map(lambda v: tuple(sorted(v)))
toys = st.integers(1, 4).flatmap(
    lambda n: st.tuples(st.lists(ordinals, min_size=n, max_size=n), st.lists(st.integers(1, 9), min_size=n, max_size=n))
)


@settings(max_examples=300, deadline=None)
@given(toys, st.integers(1, 12), st.data())
def test_projection_finds_something_wherever_lowering_leads_to_something(toy, limit, data):
    space, count, _ = _weighed(*toy, limit)
    candidate = Candidate(
        {p.name: p.domain.values[-1 - data.draw(st.integers(0, 1)) * (len(p.domain.values) > 1)] for p in space}
    )
    below = [
        Candidate(dict(zip((p.name for p in space), values, strict=True)))
        for values in product(*([v for v in p.domain.values if v <= candidate[p.name]] for p in space))
    ]
    possible = any(0 < count(c) <= limit for c in below)
    assert (project(space, candidate, count=count, limit=limit) is not None) == possible


@settings(max_examples=300, deadline=None)
@given(toys)
def test_smallest_equals_enumeration(toy):
    space, count, _ = _weighed(*toy, 0)
    names = [p.name for p in space]
    counts = [count(Candidate(dict(zip(names, v, strict=True)))) for v in product(*(p.domain.values for p in space))]
    found = smallest(space, count=count)
    assert (found and found[1]) == min((c for c in counts if c > 0), default=None)
    assert found is None or count(found[0]) == found[1]


@pytest.mark.parametrize("weights", [(1, 9), (9, 1)])
def test_what_is_kept_is_what_fits(weights):
    space, count, _ = _weighed([(0, 1), (0, 1)], weights, 1)
    fitted = project(space, Candidate({"s0": 1, "s1": 1}), count=count, limit=1)
    assert fitted == Candidate({"s0": int(weights[0] == 1), "s1": int(weights[1] == 1)})


TINY = {
    "layer_groups": 2,
    "parameters": {
        "method": {"choices": ["lora", "ia3", "ln_tuning", "prompt_tuning"]},
        "lora.rank": {"ordinal": [0, 1, 4], "per": "layers", "size": True},
        "lora.share": {"ordinal": [0, 0.5, 1], "per": "kinds", "size": True},
        "lora.dora": {"choices": [True, False]},
        "ia3.kinds": {"ordinal": [0, 1], "per": "kinds", "size": True},
        "ln_tuning.layers": {"ordinal": [0, 1], "per": "layers", "size": True},
        "ln_tuning.outer": {"choices": [True, False]},
        "prompt_tuning.tokens": {"ordinal": [2, 4], "size": True},
    },
    "kinds": ["query", "value", "up"],
}


@pytest.mark.parametrize("methods", [["lora"], ["ia3"], ["ln_tuning"], ["prompt_tuning"], ["lora", "ia3", "ln_tuning"]])
def test_smallest_of_each_method_equals_enumeration(methods, bert):
    kept = {k: v for k, v in TINY["parameters"].items() if "." not in k or k.partition(".")[0] in methods}
    kept["method"] = {"choices": methods}
    space = bind_space(parse_space({**TINY, "parameters": kept}), bert, cuda=False)
    count = count_on(bert)
    found = smallest(space, count=count)
    assert found is not None
    assert found[1] == min(n for c in enumerate_space(space) if (n := count(c)) > 0)


def enumerate_space(space):
    """Every candidate of a space without ranges."""
    partial = [{}]
    for parameter in space:
        partial = [
            {**values, parameter.name: value} if exists else values
            for values in partial
            for exists in [all(values.get(name) in allowed for name, allowed in parameter.when.items())]
            for value in (parameter.domain.values if exists else (None,))
        ]
    return [Candidate(values) for values in partial]


def test_projection_keeps_the_shape_of_an_allocation(bert):
    """Ranks 8 and 2 with a quarter of the budget are still four to one."""
    space = bind_space(load_space("default"), bert, cuda=False)
    candidate = space.complete({"lora.rank": {"0": 64, "1": 16, "2": 0}})
    count = count_on(bert)
    fitted = project(space, candidate, count=count, limit=count(candidate) // 4)
    assert fitted is not None
    ranks = [fitted[f"lora.rank[{layer}]"] for layer in range(3)]
    assert ranks[2] == 0
    assert ranks[0] > ranks[1] > 0
