"""Finalists: who they are, their repeats over a toy, and the statistics against scipy's own."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace

import pytest
from scipy import stats

from autopeft.candidates import Candidate
from autopeft.confirm import LARGEST_SHARE, confirm, reserve
from autopeft.errors import TrialError
from autopeft.execute.local import LocalExecutor
from autopeft.finals import (
    MOST_POINTS,
    Standing,
    baseline,
    compare,
    confirmed,
    finalists,
    is_plain_lora,
    kept,
    picked,
    standings,
    winners_curse,
)
from autopeft.objectives import OBJECTIVES, Objective
from autopeft.pareto import front, picks
from autopeft.problem import Problem
from autopeft.records import TrialRecord
from autopeft.space_file import parse_space
from autopeft.store import RunDirectory
from autopeft.work import Measurement

TWO = [OBJECTIVES["quality"], OBJECTIVES["params"]]
LOSS = replace(OBJECTIVES["quality"], goal="minimize")
PLAIN = {"method": "lora", "lora.rank[0-1]": 4, "lora.rank[2-3]": 4, "lora.share[query]": 1.0, "lora.share[up]": 1.0}


def trial(number, quality, params, *, state="complete", **values):
    values = values or {"x": float(number)}
    found = {"quality": quality, "params": float(params)} if state == "complete" else {}
    measurement = Measurement(quality, params) if found else None
    candidate, reason = Candidate(values), "" if found else "no"
    return TrialRecord(number, state, candidate, 0, values=found, measurement=measurement, seconds=2.0, reason=reason)


def final(number, seed, **values):
    state = "complete" if values else "failed"
    return TrialRecord(number, state, Candidate({}), seed, values=values, reason="diverged")


RECORDS = [
    trial(0, 0.9, 100),
    trial(1, 0.8, 50),
    trial(2, 0.95, 400),
    trial(3, 0.7, 300, **PLAIN),
    trial(4, 0.85, 450, **PLAIN, lr_multiple=3.0),
    trial(5, 0.99, 1, state="failed"),
]


# --- who is trained again ---


@pytest.mark.parametrize(
    ("changes", "plain"),
    [
        ({}, True),
        ({"lora.rank[2-3]": 8}, False),
        ({"lora.rank[2-3]": 0}, False),
        ({"lora.share[up]": 0.0}, False),
        ({"lora.share[up]": 0.5}, False),
        ({"lora.dora": True}, False),
        ({"lora.init": "pissa"}, False),
        ({"lora.rslora": True}, False),
        ({"lora.init": "default", "lora.bias": "none"}, True),
        ({"lora.dora": False, "lora.alpha": "2r", "lr_multiple": 9.0}, True),
        ({"method": "lora+bitfit"}, False),
    ],
)
def test_plain_lora_has_one_rank_in_every_linear(changes, plain):
    assert is_plain_lora(Candidate({**PLAIN, **changes})) is plain


def test_the_baseline_is_the_best_plain_lora():
    assert [r.number for r in baseline(RECORDS, TWO)] == [4]
    assert [r.number for r in baseline(RECORDS, [LOSS, TWO[1]])] == [3]
    assert baseline(RECORDS[:3], TWO) == []


def test_finalists_are_the_picks_the_baseline_and_the_front():
    assert {r.number for r in front(RECORDS, TWO)} == {0, 1, 2}
    assert [r.number for r in finalists(RECORDS, TWO)][:2] == [2, 4]
    assert {r.number for r in finalists(RECORDS, TWO)} == {0, 1, 2, 4}
    assert kept(RECORDS, TWO) == {0, 1, 2, 4}
    assert finalists(RECORDS, [Objective("gain", "maximize", "", lambda m: m.quality), TWO[1]]) == []


def test_a_long_front_is_cut_but_its_picks_stay():
    records = [trial(n, n / 100, 10 + n * n) for n in range(40)]
    chosen = [r.number for r in finalists(records, TWO)]
    assert len(chosen) == len(set(chosen)) == MOST_POINTS
    assert set(picks(records, TWO).values()) <= set(chosen)


# --- what the repeats say ---


def test_the_pick_goes_by_the_repeats_on_the_validation_split():
    finals = [
        *(final(2, s, validation=0.80, test=0.99) for s in (1, 2)),
        *(final(0, s, validation=0.88, test=0.5) for s in (1, 2)),
        *(final(1, s, validation=0.79, test=0.5) for s in (1, 2)),
    ]
    assert picks(RECORDS, TWO)["best"] == 2
    assert picked(RECORDS, finals, TWO)["best"] == 0
    assert picked(RECORDS, [], TWO) == picks(RECORDS, TWO)
    means = {r.number: round(r.values["quality"], 6) for r in confirmed(RECORDS, finals, TWO)}
    assert means == {2: 0.8, 0: 0.88, 1: 0.79}
    assert standings(RECORDS, finals, TWO)[0].record.number == 2  # by the test split


def test_a_failed_repeat_is_told_and_not_counted():
    found = standings(RECORDS, [final(0, 1, validation=0.5, test=0.6), final(0, 2)], TWO)
    assert (dict(found[0].test), dict(found[0].failed)) == ({1: 0.6}, {2: "diverged"})
    only_failed = [final(0, 1), final(0, 2)]
    assert standings(RECORDS, only_failed, TWO)[0].judged == {}
    assert picked(RECORDS, only_failed, TWO) == picks(RECORDS, TWO)


def standing(*values, searched=0.5):
    return Standing(RECORDS[0], searched, dict(enumerate(values)), dict(enumerate(values)), {})


@pytest.mark.parametrize("quality", [OBJECTIVES["quality"], LOSS])
def test_a_comparison_is_the_paired_t_test(quality):
    one, other = (0.91, 0.90, 0.93, 0.88), (0.85, 0.88, 0.86, 0.87)
    found = compare(standing(*one), standing(*other), quality)
    oracle = stats.ttest_rel(one, other)
    sign = 1 if quality.goal == "maximize" else -1
    low, high = sorted(sign * v for v in oracle.confidence_interval())
    assert found.p == pytest.approx(oracle.pvalue)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.difference == pytest.approx(sign * (statistics.fmean(one) - statistics.fmean(other)))
    assert found.significant == (oracle.pvalue < 0.05)


def test_few_seeds_say_little():
    one = compare(standing(0.9), standing(0.8), TWO[0])
    assert (one.low, one.high, one.significant) == (-math.inf, math.inf, False)
    assert compare(standing(), standing(0.8), TWO[0]) is None
    for equal in (standing(0.8, 0.9), standing(0.7, 0.8), standing(0.75, 0.85, 0.95)):  # by the same, but for rounding
        found = compare(standing(0.8, 0.9, 1.0), equal, TWO[0])
        assert (found.low, found.high, found.significant) == (-math.inf, math.inf, False)
        assert math.isnan(found.p)


def test_what_was_chosen_among_several_is_held_to_more():
    one, other = standing(0.91, 0.90, 0.93, 0.88), standing(0.85, 0.86, 0.86, 0.86)
    alone, among = compare(one, other, TWO[0]), compare(one, other, TWO[0], among=8)
    assert among.p == pytest.approx(8 * alone.p)
    assert among.low < alone.low < alone.high < among.high


def test_picks_wait_until_all_of_them_are_repeated_and_leave_out_what_failed():
    finals = [final(2, 1, validation=0.5, test=0.5), final(0, 1, validation=0.9, test=0.9)]
    assert picked(RECORDS, finals, TWO) == picks(RECORDS, TWO)  # the smallest, trial 1, has no repeat yet
    finals.append(final(1, 1, validation=0.4, test=0.4))
    assert picked(RECORDS, finals, TWO)["best"] == 0
    assert picked(RECORDS, [*finals, final(0, 2)], TWO)["best"] == 2


def test_the_winners_curse_is_what_repeats_lose():
    found = [standing(0.8, 0.7, searched=0.9), standing(0.6, searched=0.65)]
    assert winners_curse(found, TWO[0]) == pytest.approx(((0.9 - 0.75) + (0.65 - 0.6)) / 2)
    assert winners_curse(found, LOSS) == pytest.approx(-0.1)
    assert winners_curse([standing()], TWO[0]) is None


# --- the repeats themselves ---


class Heard:
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


class Runner:
    """Gives a quality by formula, and keeps what was asked."""

    def __init__(self, broken=(), wrong=()):
        self.units, self._broken, self._wrong = [], broken, wrong

    def run(self, unit):
        self.units.append(unit)
        if unit.seed in self._broken:
            raise TrialError("the loss is nan")
        validation = math.inf if unit.seed in self._wrong else unit.seed / 10
        return Measurement(float(unit.candidate["x"]) + unit.seed, 3, metrics={"validation_accuracy": validation})


SPACE = {"parameters": {"x": {"low": 0.0, "high": 10.0}}}


def settle(folder, runner, *, seeds=(11, 12), records=RECORDS[:3], **options):
    """Repeat the finalists of a run in a folder; gives (whether all are done, finals, notes)."""
    view, problem = Heard(), Problem(parse_space(SPACE), tuple(TWO))
    with RunDirectory(folder) as store:
        for record in records if not store.records else ():
            store.append(record)
        options = {"metric": "accuracy", "splits": ("test", "validation"), "steps": 5, **options}
        done = confirm(problem, LocalExecutor(lambda: runner), store, view, seeds=seeds, **options)
        return done, list(store.finals), view.notes


def test_every_finalist_is_trained_with_every_seed(tmp_path):
    runner = Runner()
    done, finals, notes = settle(tmp_path, runner)
    assert done
    assert [(f.number, f.seed) for f in finals] == [(n, s) for n in (2, 0, 1) for s in (11, 12)]
    assert {(u.steps, u.splits, u.adapter_dir) for u in runner.units} == {(5, ("test", "validation"), "")}
    for f in finals:
        assert f.values == {"test": f.number + f.seed, "validation": f.seed / 10}
    assert "3 finalists" in notes[0]
    lines = (tmp_path / "finals.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [2, 2, 0, 0, 1, 1]


def test_what_a_kill_left_is_done_later_and_nothing_twice(tmp_path):
    settle(tmp_path, Runner(), seeds=(11,))
    whole = (tmp_path / "finals.jsonl").read_bytes()
    (tmp_path / "finals.jsonl").write_bytes(whole[:-40])  # the last line was torn
    runner = Runner()
    _, finals, _ = settle(tmp_path, runner)
    assert sorted((f.number, f.seed) for f in finals) == [(n, s) for n in (0, 1, 2) for s in (11, 12)]
    assert len(runner.units) == 4
    again = Runner()
    assert settle(tmp_path, again)[0]
    assert again.units == []


def test_a_repeat_that_fails_has_its_reason(tmp_path):
    done, finals, _ = settle(tmp_path, Runner(broken=[11], wrong=[12]), records=RECORDS[:1])
    assert done
    assert [(f.state, f.values) for f in finals] == [("failed", {}), ("failed", {})]
    assert "loss is nan" in finals[0].reason
    assert "not a number" in finals[1].reason


def test_without_a_test_split_the_validation_split_is_what_counts(tmp_path):
    _, finals, _ = settle(tmp_path, Runner(), splits=("validation",), records=RECORDS[:1])
    assert [f.values for f in finals] == [{"validation": 11.0}, {"validation": 12.0}]


def test_no_repeat_begins_that_would_not_end_in_time(tmp_path):
    now = [0.0]

    def clock():
        now[0] += 0.25
        return now[0]

    done, finals, notes = settle(tmp_path, Runner(), deadline=4.0, clock=clock)
    assert not done
    assert 0 < len(finals) < 6
    assert "resume" in notes[-1]


def test_time_is_kept_for_the_finalists_but_not_all_of_it():
    problem = Problem(parse_space(SPACE), tuple(TWO))
    records = RECORDS[:3]  # three finalists of two seconds each
    assert reserve(problem, seeds=3, at_once=2, seconds=1000.0)(records) == 10.0
    assert reserve(problem, seeds=3, at_once=2, seconds=15.0)(records) == pytest.approx(LARGEST_SHARE * 15)
    assert reserve(problem, seeds=3, at_once=2, seconds=15.0)([]) == 0
