from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autopeft.candidates import Candidate
from autopeft.objectives import METRICS, OBJECTIVES, Objective, quality_of
from autopeft.pareto import front, hypervolume, knee, on_front, picks
from autopeft.records import TrialRecord

THREE = [OBJECTIVES[name] for name in ("quality", "params", "memory")]

# Few distinct values, so that ties and equal rows are common.
coarse = st.tuples(st.integers(0, 30), st.integers(1, 5)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(0, 4).map(float))
)
fine = st.tuples(st.integers(1, 30), st.integers(1, 5)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(-1e300, 1e300))
)


def dominates(a, b) -> bool:
    return bool((a <= b).all() and (a < b).any())


def brute_front(losses) -> list[bool]:
    return [not any(dominates(other, row) for other in losses) for row in losses]


@given(st.one_of(coarse, fine))
def test_front_equals_brute_force(losses):
    assert on_front(losses).tolist() == brute_front(losses)


@given(arrays(np.float64, st.tuples(st.integers(0, 8), st.integers(1, 4)), elements=st.integers(0, 5).map(float)))
def test_hypervolume_equals_the_count_of_dominated_cells(losses):
    n = losses.shape[1]
    cells = product(range(4), repeat=n)  # unit cells below the reference (4, 4, ...); rows at 4 and 5 add nothing
    covered = sum(any((row <= np.array(cell)).all() for row in losses) for cell in cells)
    assert hypervolume(losses, [4.0] * n) == pytest.approx(covered)


@given(st.one_of(coarse.filter(len), fine))
def test_knee_lies_on_the_front_and_ignores_dominated_rows(losses):
    chosen = knee(losses)
    assert brute_front(losses)[chosen]
    worse = np.vstack([losses, losses.max(axis=0) / 2 + 1e300])
    assert knee(worse) == chosen


def test_knee_is_the_nearest_to_the_ideal_by_hand():
    assert knee([[0, 100], [0.1, 20], [1, 0]]) == 1  # distances 1, 0.224, 1
    assert knee([[0, 100], [0.9, 95], [1, 0]]) == 0  # the middle one is farther off than the ends; first of equals
    assert knee([[7, 7]]) == 0
    assert knee([[0, 5, 1], [1, 5, 0]]) == 0  # a column without differences has no say


def test_knee_does_not_change_with_scale_and_offset():
    losses = np.array([[0, 9.0], [1, 4], [3, 1], [9, 0]])
    assert knee(losses) == knee(losses * [1e-9, 1e9] + [5, -3])


@pytest.mark.parametrize("bad", [[[np.nan, 1]], [[1, np.inf]], [[-np.inf, 1]], [1, 2], [[[1]]], [[], []]])
def test_losses_that_are_no_finite_table_are_refused(bad):
    for function in (on_front, knee, lambda losses: hypervolume(losses, [1, 1])):
        with pytest.raises(ValueError):
            function(bad)


def test_hypervolume_refuses_a_reference_that_does_not_fit():
    for reference in ([1], [1, np.inf], [[1, 1]]):
        with pytest.raises(ValueError, match="reference"):
            hypervolume([[0, 0]], reference)


def test_no_trials_have_no_front_and_no_volume():
    assert on_front(np.zeros((0, 3))).tolist() == []
    assert hypervolume(np.zeros((0, 2)), [1, 1]) == 0
    assert front([], THREE) == []
    assert picks([], THREE) == {}
    with pytest.raises(ValueError, match="no trials"):
        knee(np.zeros((0, 2)))


def record(number: int, *values: float, state="complete", objectives=THREE) -> TrialRecord:
    named = dict(zip((o.name for o in objectives), values, strict=True)) if state == "complete" else {}
    return TrialRecord(number, state, Candidate({"n": number}), 0, values=named)


def test_front_has_only_complete_trials_best_quality_first():
    records = [
        record(0, 0.5, 10, 5),
        record(1, 0.9, 1000, 9),
        record(2, 0.4, 20, 6),  # dominated by 0
        record(3, 0.7, 100, 7),
        record(4, state="failed"),
        record(5, state="infeasible"),
    ]
    assert [r.number for r in front(records, THREE)] == [1, 3, 0]


def test_a_complete_record_with_nan_is_refused():
    with pytest.raises(ValueError, match="finite"):
        front([record(0, float("nan"), 1, 1)], THREE)


def test_picks_by_hand():
    records = [record(0, 0.60, 1_000, 5e9), record(1, 0.90, 100_000_000, 9e9), record(2, 0.89, 1_000_000, 6e9)]
    assert picks(records, THREE) == {"best": 1, "knee": 2, "smallest": 0}


def test_knee_of_the_picks_sees_counts_by_ratio():
    # On a linear scale 30,000 parameters would be as good as 1,000 beside 10 million, and trial 1 the knee.
    two = THREE[:2]
    records = [
        record(0, 0.0, 1_000, objectives=two),
        record(1, 0.62, 100_000, objectives=two),
        record(2, 0.6, 10_000, objectives=two),
        record(3, 1.0, 10_000_000, objectives=two),
    ]
    assert picks(records, two)["knee"] == 2
    assert knee([[-0.0, 1e3], [-0.62, 1e5], [-0.6, 1e4], [-1, 1e7]]) == 1


def test_ties_go_to_the_better_in_the_rest_then_to_the_earlier():
    records = [record(3, 0.9, 10, 5), record(1, 0.9, 10, 5), record(2, 0.9, 5, 9), record(0, 0.8, 5, 8)]
    assert picks(records, THREE)["best"] == 2
    assert picks(records, THREE)["smallest"] == 2
    assert [r.number for r in front(records, THREE)] == [2, 1, 3, 0]


def test_quality_that_is_minimised_is_best_when_low():
    loss = [quality_of(METRICS["loss"]), OBJECTIVES["params"]]
    records = [record(0, 2.0, 10, objectives=loss), record(1, 1.0, 100, objectives=loss)]
    assert [r.number for r in front(records, loss)] == [1, 0]
    assert picks(records, loss)["best"] == 1
    assert picks(records, loss)["smallest"] == 0


def test_smallest_without_params_is_the_lowest_first_cost():
    custom = [Objective("gain", "maximize", "", lambda m: 0), Objective("latency", "minimize", "ms", lambda m: 0)]
    records = [record(0, 5, 50, objectives=custom), record(1, 1, -3, objectives=custom)]
    assert picks(records, custom) == {"best": 0, "knee": 0, "smallest": 1}


def test_one_objective_has_no_smallest():
    one = THREE[:1]
    assert picks([record(0, 0.1, objectives=one), record(1, 0.2, objectives=one)], one) == {"best": 1, "knee": 1}


names = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=25)


@given(names)
def test_picks_lie_on_the_front(rows):
    records = [record(i, *map(float, row)) for i, row in enumerate(rows)]
    on = brute_front(np.array([[-q, p, m] for q, p, m in rows], dtype=float))
    assert sorted(r.number for r in front(records, THREE)) == [i for i, keep in enumerate(on) if keep]
    chosen = picks(records, THREE)
    assert all(on[number] for number in chosen.values())
    assert rows[chosen["best"]][0] == max(q for q, _, _ in rows)
    assert rows[chosen["smallest"]][1] == min(p for _, p, _ in rows)
