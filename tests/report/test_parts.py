"""The parts of the report that compute or write something of their own."""

from __future__ import annotations

import ast
import csv
import random
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from sample import HOSTILE, LOSS, THREE, bert, hostile_run, llama, make_info, make_records
from sklearn.ensemble import RandomForestRegressor

from autopeft.candidates import BaseFormat, Candidate
from autopeft.finals import baseline
from autopeft.pareto import front, picks
from autopeft.records import TrialRecord
from autopeft.report import COLUMNS, Context, front_svg, table, verdict, write_csv
from autopeft.report.finalists import finalists
from autopeft.report.front import log_ticks
from autopeft.report.history import volume_course
from autopeft.report.importance import LEAST_TRIALS, importances, shuffled_loss
from autopeft.report.usage import peft_code

SVG = "{http://www.w3.org/2000/svg}"


def context(records, objectives=THREE, anatomy=None) -> Context:
    return Context(make_info(anatomy or bert()), records, objectives)


def trial(number: int, quality: float, params: float, **values) -> TrialRecord:
    named = {"quality": quality, "params": params}
    return TrialRecord(number, "complete", Candidate({"n": number, **values}), 0, values=named, seconds=1.0)


def test_hypervolume_by_hand():
    # Box: quality 0..1, parameters 1..100 by logarithm. (1, 10) covers half of it, (0.5, 1) adds a quarter.
    records = [trial(0, 0.0, 100), trial(1, 1.0, 10), trial(2, 0.5, 1)]
    rows, volumes = volume_course(context(records, THREE[:2]))
    assert rows == [0, 1, 2]
    assert volumes == pytest.approx([0, 0.5, 0.75])


def test_hypervolume_never_falls_and_is_left_out_for_one_objective():
    _, volumes = volume_course(context(make_records(80)))
    assert volumes == sorted(volumes)
    assert 0 < volumes[-1] <= 1
    assert volume_course(context(make_records(20), THREE[:1])) == ([], [])


def test_volume_of_many_trials_is_computed_at_some_of_them_and_ends_at_the_last():
    rng = random.Random(0)
    records = [trial(n, rng.random(), rng.randint(1, 10**6)) for n in range(1500)]
    rows, volumes = volume_course(context(records, THREE[:2]))
    assert len(rows) == 400
    assert rows[-1] == 1499
    few_rows, few = volume_course(context([r for r in records if r in front(records, THREE[:2])], THREE[:2]))
    assert few_rows
    assert volumes[-1] > 0.9
    assert few[-1] <= 1


def test_importances_find_the_parameter_that_decides():
    rng = random.Random(0)
    records = []
    for n in range(60):
        a, b = rng.random(), rng.choice(["x", "y"])
        records.append(trial(n, a * 0.8 + rng.gauss(0, 0.01), 10, decides=a, noise=b, always=3))
    found = importances(context(records, THREE[:1]))
    assert found.n_trials == 60
    assert found.rows[0][0] == "decides"
    assert found.rows[0][1] > 0.8
    assert found.explained > 0.8
    assert "always" not in dict(found.rows)


def test_loss_by_shuffling_is_that_of_the_whole_forest():
    draw = np.random.default_rng(0)
    table = draw.normal(size=(80, 7))
    table[draw.random(table.shape) < 0.2] = np.nan  # parameters that are not active
    quality = np.nan_to_num(table[:, 2]) + np.nan_to_num(table[:, 5]) ** 2
    forest = RandomForestRegressor(n_estimators=9, min_samples_leaf=2, max_depth=3, random_state=0).fit(table, quality)
    orders = np.array([draw.permutation(80) for _ in range(4)])
    whole = forest.score(table, quality)
    expected = []
    for column in range(7):
        scores = []
        for order in orders:
            other = table.copy()
            other[:, column] = table[order, column]
            scores.append(forest.score(other, quality))
        expected.append(whole - np.mean(scores))
    assert shuffled_loss(forest, table, quality, orders) == pytest.approx(expected, abs=1e-9)
    assert max(expected) > 0.1


def test_importances_say_nothing_where_nothing_is_known():
    few = importances(context(make_records(LEAST_TRIALS - 1, fail=0.0)))
    assert (few.rows, few.note) == ((), "Too few trials to say.")
    rng = random.Random(1)
    chance = [trial(n, rng.random(), 10, a=rng.random()) for n in range(40)]
    found = importances(context(chance, THREE[:1]))
    assert found.rows == ()
    assert "do not predict" in found.note
    same = importances(context([trial(n, 0.5, 10) for n in range(40)], THREE[:1]))
    assert same.note == "Nothing differs between the trials."


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
@pytest.mark.parametrize("anatomy", [bert(), llama(2)])
def test_code_for_peft_is_python_and_fits_bits_and_task(anatomy, bits):
    record = make_records(1, fail=0.0)[0]
    plan = replace(record.plan, base=BaseFormat(bits))
    code = peft_code(context([record], anatomy=anatomy), plan, f"dir \"{HOSTILE}' \\")
    tree = ast.parse(code)
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert f"dir \"{HOSTILE}' \\" in strings
    assert ("load_in_4bit" in code, "load_in_8bit" in code) == (bits == 4, bits == 8)
    classify = anatomy.task == "text-classification"
    assert ("AutoModelForSequenceClassification" in code, "num_labels=3" in code) == (classify, classify)
    assert ("AutoModelForCausalLM" in code) != classify
    assert ("dtype=torch.bfloat16" in code) == (bits == 16)  # the runs of the sample were on a CPU
    assert ("llm_int8_skip_modules" in code) == (bits in (4, 8))


def test_no_peft_code_for_a_method_that_peft_lacks():
    record = make_records(1, fail=0.0)[0]
    assert peft_code(context([record]), replace(record.plan, config={"rank": 4}), "x") == ""


def read(path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_csv_holds_the_front_exactly(tmp_path):
    records = make_records(60)
    folders = {n: f"adapters/{n}" for n in range(60)}
    write_csv(records, THREE, tmp_path / "front.csv", named=picks(records, THREE), adapter_dirs=folders)
    rows, points = read(tmp_path / "front.csv"), front(records, THREE)
    assert [int(row["number"]) for row in rows] == [r.number for r in points]
    for row, record in zip(rows, points, strict=True):
        assert {o.name: float(row[o.name]) for o in THREE} == record.values
        assert (row["method"], int(row["bits"])) == (record.plan.method, record.plan.bits)
        assert float(row["learning_rate"]) == record.plan.learning_rate
        assert row["adapter_dir"] == f"adapters/{record.number}"
        for name, value in record.candidate.values.items():
            assert row[name] == str(value)
    named = {name: int(row["number"]) for row in rows for name in row["picks"].split()}
    assert named == picks(records, THREE)


def test_csv_keeps_values_whose_names_are_taken_and_any_text(tmp_path):
    text = 'a,"b"\nc'
    record = TrialRecord(3, "complete", Candidate({"number": 7, "picks": text, "x": True}), 0, values={"quality": 0.5})
    write_csv([record], THREE[:1], tmp_path / "front.csv", named={})
    (row,) = read(tmp_path / "front.csv")
    assert (row["number"], row["candidate.number"], row["candidate.picks"], row["x"]) == ("3", "7", text, "True")


def test_csv_without_a_front_has_a_header_only(tmp_path):
    write_csv(make_records(4, fail=1.0), THREE, tmp_path / "front.csv", named={})
    assert read(tmp_path / "front.csv") == []
    assert (tmp_path / "front.csv").read_text(encoding="utf-8").startswith("number,picks,quality,params,memory,method,")


@pytest.mark.parametrize("n", [0, 1, 2, 60])
@pytest.mark.parametrize("objectives", [THREE, THREE[:2], THREE[:1], THREE[1:]])
def test_svg_is_xml_with_a_dot_for_each_complete_trial(n, objectives):
    records = make_records(n)
    root = ET.fromstring(front_svg(make_info(bert()), records, objectives))
    complete = [r for r in records if r.state == "complete"]
    rings = len(set(picks(records, objectives).values()))
    assert len(root.findall(f"{SVG}circle")) == len(complete) + rings
    assert len(root.findall(f"{SVG}circle/{SVG}title")) == len(front(records, objectives))


def test_svg_draws_better_quality_higher_and_more_parameters_to_the_right():
    records = [trial(0, 0.2, 1_000), trial(1, 0.9, 100_000)]
    root = ET.fromstring(front_svg(make_info(bert()), records, THREE[:2]))
    best, low = root.findall(f"{SVG}circle")[:2]  # best quality first
    assert float(best.get("cy")) < float(low.get("cy"))
    assert float(best.get("cx")) > float(low.get("cx"))


def test_svg_escapes_and_loads_nothing():
    svg = front_svg(*hostile_run())
    assert "<img" not in svg
    assert ET.fromstring(svg) is not None
    assert "href" not in svg
    assert len(front_svg(make_info(llama()), make_records(300, anatomy=llama()), LOSS)) < 150_000


def test_ticks_of_a_log_axis_stay_few():
    assert log_ticks(3, 900) == [5, 10, 20, 50, 100, 200, 500]
    assert log_ticks(1, 1e9) == [10.0**p for p in range(10)]
    assert log_ticks(7, 7) == []


# --- the finalists ---


def repeats(records, numbers, quality, seeds=(1, 2, 3)):
    """Repeat trials: (number, seed) -> test quality by a function; validation is a little better."""
    by_number = {r.number: r for r in records}
    return [
        replace(by_number[n], seed=s, values={"test": quality(n, s), "validation": quality(n, s) + 0.01})
        for n in numbers
        for s in seeds
    ]


def verdict_for(gain, noise):
    """Give the verdict where the best beats plain LoRA by `gain`, with noise that alternates."""
    info, records = make_info(bert()), make_records(60)
    plain, best = baseline(records, THREE)[0].number, picks(records, THREE)["best"]
    assert plain != best
    finals = repeats(records, [best, plain], lambda n, s: 0.7 + (gain + noise * (-1) ** s if n == best else 0.0))
    context = Context(info, records, THREE, finals=finals)
    return context, verdict(context)


def test_the_verdict_says_whether_the_gain_is_more_than_chance():
    context, said = verdict_for(0.1, 0.002)
    assert "a significant gain over tuned LoRA" in said
    assert f"trial {context.picks['best'].number}" in said
    assert "no significant gain over tuned LoRA" in verdict_for(0.03, 0.05)[1]
    row = next(row for row in table(context) if row["gain"] is not None)
    assert row["gain"] == pytest.approx(0.1, abs=2e-3)
    assert row["gain_low"] < row["gain"] < row["gain_high"]
    assert set(row) == set(COLUMNS)


def test_the_verdict_says_when_plain_lora_is_the_best():
    info, records = make_info(bert()), make_records(60)
    plain = baseline(records, THREE)[0].number
    finals = repeats(records, {*picks(records, THREE).values(), plain}, lambda n, s: 0.9 if n == plain else 0.5)
    context = Context(info, records, THREE, finals=finals)
    assert context.picks["best"].number == plain
    assert "is plain LoRA itself" in verdict(context)
    assert verdict(Context(info, records, THREE)) == ""


def test_one_seed_and_no_test_split_are_told():
    info, records = make_info(bert()), make_records(60)
    plain, best = baseline(records, THREE)[0].number, picks(records, THREE)["best"]
    finals = [
        replace(f, values={"validation": f.values["validation"]})
        for f in repeats(records, [best, plain], lambda n, s: 0.9 if n == best else 0.8, seeds=(1,))
    ]
    context = Context(info, records, THREE, finals=finals)
    assert "1 seed cannot tell" in verdict(context)
    html = str(finalists(context).html)
    assert "the data has no test split" in html
    assert "test, new seeds" not in html
