"""The ladder against brute force: who is among the best third of those that got to a rung, counted by hand."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from autopeft.candidates import Candidate
from autopeft.records import RungResult
from autopeft.search.rungs import Ladder, Standing, best_of


def standing(number, loss, *costs, step=1, start=False):
    return Standing(number, Candidate({"x": number}), RungResult(step, loss, costs), start)


def dominates(one, other):
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def fronts(points):
    """Peel fronts by comparing all with all."""
    left, found = dict(enumerate(points)), {}
    for number in itertools.count():
        if not left:
            return [found[i] for i in range(len(points))]
        best = [i for i, p in left.items() if not any(dominates(q, p) for q in left.values())]
        for i in best:
            found[i] = number
            del left[i]
    return None


def volume(points, corner=2.0):
    """Count the cells of the grid of all coordinates that some point dominates."""
    if not points:
        return 0.0
    axes = [sorted({p[k] for p in points} | {corner}) for k in range(len(points[0]))]
    total = 0.0
    for cell in itertools.product(*(range(len(axis) - 1) for axis in axes)):
        low = [axis[c] for axis, c in zip(axes, cell, strict=True)]
        if any(all(x <= y for x, y in zip(p, low, strict=True)) for p in points):
            total += float(np.prod([axis[c + 1] - axis[c] for axis, c in zip(axes, cell, strict=True)]))
    return total


def by_hand(points, count):
    """Take front by front, and of a front always the one that adds most; of equal ones the first."""
    ranks = []
    for column in zip(*points, strict=True):
        different = sorted(set(column))
        ranks.append([different.index(v) / max(1, len(different) - 1) for v in column])
    ranked = [tuple(p) for p in zip(*ranks, strict=True)]
    levels, taken = fronts(ranked), []
    for level in range(max(levels) + 1):
        left, own = [i for i in range(len(points)) if levels[i] == level], []
        while left and len(taken) + len(own) < count:
            before = volume([ranked[j] for j in own])
            gains = [round(volume([ranked[j] for j in (*own, i)]) - before, 9) for i in left]
            own.append(left.pop(gains.index(max(gains))))
        taken += own
    return taken


@pytest.mark.parametrize("objectives", [1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_the_best_are_those_found_by_hand(objectives, seed):
    draw = random.Random(seed)
    # Few values, so that many are equal.
    points = [tuple(draw.randint(0, 6) for _ in range(objectives)) for _ in range(11)]
    assert best_of(points, 11) == by_hand(points, 11)
    assert best_of(points, 4) == by_hand(points, 4)


def test_neither_units_nor_outliers_matter():
    points = np.random.default_rng(0).random((30, 3))
    other = points * [1, 1e9, 1e-3] + [0, 5, 0]
    other[points[:, 0].argmax(), 0] = 1e30
    assert best_of(points, 10) == best_of(other, 10)


@pytest.mark.parametrize("seed", range(8))
def test_a_ladder_promotes_the_best_third_of_those_that_got_there(seed):
    """Random arrivals and promotions, asked after each; the oracle recounts everything from the whole history."""
    draw = random.Random(seed)
    rungs, ladder = (1, 3), Ladder((1, 3))
    reached: dict[int, list[Standing]] = {1: [], 3: []}
    paused: dict[int, int] = {}
    for number in range(40):
        arrived = standing(number, draw.random(), draw.randint(1, 9))
        ladder.reach(arrived)
        reached[1].append(arrived)
        paused[number] = 1
        while True:
            due = []
            for step in reversed(rungs):
                everyone = reached[step]
                points, count = [(s.result.loss, *s.result.costs) for s in everyone], len(everyone) // 3
                best = [everyone[i].number for i in by_hand(points, count)] if count else []
                due += [n for n in best if paused.get(n) == step]
            promoted = ladder.promote()
            assert (promoted.number if promoted else None) == (due[0] if due else None)
            if promoted is None:
                break
            step = paused.pop(promoted.number)
            assert promoted.result.step == step
            if step == 1:
                further = standing(promoted.number, draw.random(), *promoted.result.costs, step=3)
                ladder.reach(further)
                reached[3].append(further)
                paused[promoted.number] = 3
            else:
                ladder.reach(standing(promoted.number, 0.0, *promoted.result.costs, step=9), pauses=False)
        assert [s.number for s in ladder.paused] == sorted(paused)
    assert len(reached[3]) >= 40 // 3


def test_nobody_waits_for_a_rung_to_fill():
    ladder = Ladder((1, 3))
    for number, loss in enumerate((3.0, 2.0)):
        ladder.reach(standing(number, loss))
    assert ladder.promote() is None
    ladder.reach(standing(2, 2.5))
    assert ladder.promote().number == 1
    assert ladder.promote() is None


def test_the_small_one_survives_beside_the_good_one():
    """On the loss alone the three largest would go on, and the fronts would have no small end."""
    ladder = Ladder((1,))
    for number in range(9):
        ladder.reach(standing(number, 1.0 - number / 10, 100 * 2**number))
    assert [ladder.promote().number for _ in range(3)] == [4, 0, 8]
    assert ladder.promote() is None


def test_configurations_of_the_start_always_go_on_and_first():
    ladder = Ladder((1,))
    ladder.reach(standing(0, 9.0, start=True))
    for number in range(1, 4):
        ladder.reach(standing(number, number / 10))
    ladder.reach(standing(4, 8.0, start=True))
    assert [s.number for s in iter(ladder.promote, None)] == [0, 4, 1]


def test_the_highest_rung_comes_first():
    ladder = Ladder((1, 3))
    for number in range(9):
        ladder.reach(standing(number, float(number)))
    went_on = [ladder.promote() for _ in range(3)]
    for s in went_on:
        ladder.reach(standing(s.number, s.result.loss, step=3))
    ladder.reach(standing(9, -1.0))
    assert [(s.number, s.result.step) for s in iter(ladder.promote, None)] == [(0, 3), (9, 1)]


def test_those_that_may_not_go_on_stay():
    ladder = Ladder((1,))
    for number in range(6):
        ladder.reach(standing(number, float(number)))
    assert ladder.promote(may=lambda s: s.number == 1).number == 1
    assert ladder.promote(may=lambda s: False) is None
    assert ladder.promote().number == 0


def test_when_no_more_are_begun_the_best_of_few_goes_on():
    ladder = Ladder((1, 3))
    ladder.reach(standing(0, 2.0))
    ladder.reach(standing(1, 1.0))
    assert ladder.promote() is None
    best = ladder.promote(closing=True)
    assert best.number == 1
    assert ladder.promote(closing=True) is None
    ladder.reach(standing(1, 0.5, step=3))
    assert ladder.promote(closing=True).result.step == 3


def test_without_rungs_nobody_pauses():
    ladder = Ladder()
    assert ladder.after(0) is None
    ladder.reach(standing(0, 1.0, step=9), pauses=False)
    assert ladder.promote(closing=True) is None
    assert [Ladder((2, 5)).after(step) for step in (0, 2, 3, 5)] == [2, 5, 5, None]


@pytest.mark.parametrize("rungs", [(3, 1), (1, 1), (0, 2), (-1,)])
def test_rungs_that_do_not_ascend_are_refused(rungs):
    with pytest.raises(ValueError, match="do not ascend from 1"):
        Ladder(rungs)
