"""Rows of numbers of candidates: equal for equal ones, near for alike ones, whatever the space."""

from __future__ import annotations

import numpy as np
import pytest
from small_search import problem_on

from autopeft.search.features import MOST_GROUPS, Features, families
from autopeft.space_file import parse_space

SPACE = parse_space(
    {
        "parameters": {
            "method": {"choices": ["lora", "ia3", "hira"]},
            "rate": {"low": 0.01, "high": 100, "log": True},
            **{f"lora.rank{i}": {"ordinal": [0, 1, 8, 64], "when": {"method": ["lora"]}} for i in range(4)},
            "hira.rank": {"ordinal": [1, 8, 64], "when": {"method": ["hira"]}},
            "ia3.form": {"choices": ["a", "b"], "when": {"method": ["ia3"]}},
            "width": {"low": 2, "high": 12, "integer": True},
        }
    }
)


def column(name, **values):
    features = Features(SPACE, with_cost=False)
    return features.of([SPACE.complete(values)])[0, features.names.index(name)]


def test_numbers_lie_between_0_and_1_on_their_own_scale():
    assert column("rate", rate=1.0) == pytest.approx(0.5)
    assert column("rate", rate=100.0) == 1
    assert column("width", width=7) == 0.5
    assert column("rank", method="hira", **{"hira.rank": 8}) == 0.5


def test_places_of_one_thing_are_a_family_with_mean_and_tilt():
    assert [len(f.members) for f in families(SPACE) if f.name == "lora.rank#"] == [4]
    ranks = {f"lora.rank{i}": rank for i, rank in enumerate([0, 0, 64, 64])}
    assert column("rank#", method="lora", **ranks) == 0.5
    assert column("lora.rank# tilt", method="lora", **ranks) == pytest.approx((1 + 1 / 3) / 4)
    flat = {f"lora.rank{i}": 8 for i in range(4)}
    assert column("lora.rank# tilt", method="lora", **flat) == pytest.approx(0)


def test_other_parameters_of_the_same_name_are_no_family():
    space = parse_space({"parameters": {"x1": {"low": 0, "high": 1}, "x2": {"low": 0, "high": 2}}})
    assert [f.name for f in families(space)] == ["x#", "x#"]


def test_what_methods_share_by_name_is_one_column(bert):
    problem = problem_on(bert)
    features = Features(problem.space, with_cost=True)
    assert features.names.count("rank") == 1
    candidates = [
        problem.space.complete({"method": "lora", "lora.rank": 64}),
        problem.space.complete({"method": "hira", "hira.rank": 64}),
        problem.space.complete({"method": "ia3"}),
    ]
    rows = features.of(candidates, np.ones(3))[:, features.names.index("rank")]
    assert rows.tolist() == [1.0, 1.0, 0.5]


def test_choices_are_as_far_from_one_another_as_the_ends_of_a_range():
    features = Features(SPACE, with_cost=False)
    rows = features.of([SPACE.complete({"method": m}) for m in ("lora", "ia3")])
    at = [i for i, name in enumerate(features.names) if name.startswith("method=")]
    assert ((rows[0, at] - rows[1, at]) ** 2).sum() == pytest.approx(1)


def test_the_whole_default_space_has_few_groups_and_finite_rows(bert):
    problem = problem_on(bert)
    features = Features(problem.space, with_cost=True)
    candidates = [problem.space.complete(start) for start in problem.space.start]
    rows = features.of(candidates, np.arange(1, len(candidates) + 1.0))
    assert rows.shape == (len(candidates), len(features.names)) == (len(candidates), len(features.kernel.groups))
    assert np.isfinite(rows).all()
    assert features.kernel.n_groups <= MOST_GROUPS
    assert len(np.unique(rows, axis=0)) == len({candidate.key for candidate in candidates})


def test_no_candidates_are_no_rows():
    features = Features(SPACE, with_cost=True)
    assert features.of([], np.zeros(0)).shape == (0, len(features.names))
    assert features.plain([]).shape[0] == 0
