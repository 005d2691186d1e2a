from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import pytest
from sample import HOSTILE, LOSS, THREE, bert, hostile_run, llama, make_info, make_records

from autopeft.candidates import BaseFormat
from autopeft.methods import METHODS
from autopeft.objectives import OBJECTIVES
from autopeft.pareto import picks
from autopeft.records import TrialRecord
from autopeft.report import SECTIONS, Context, render
from autopeft.report.words import method_sentence
from autopeft.work import Measurement


class Page(HTMLParser):
    """What a browser would see: tags with attributes, the text, the scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))

    def handle_data(self, data):
        if self.lasttag == "script" and self.tags[-1][0] == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
        else:
            self.text += data

    def handle_endtag(self, tag):
        self.tags.append((f"/{tag}", {}))

    @property
    def data(self) -> list[dict]:
        return [strict(text) for kind, text in self.scripts if kind == "application/json"]

    @property
    def plot(self) -> dict:
        return self.data[0]

    @property
    def table(self) -> dict:
        return next(d for d in self.data if "tracebacks" in d)

    @property
    def grids(self) -> dict:
        return next(d for d in self.data if "grids" in d)


def strict(text: str):
    def refuse(name: str):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def without_plotly(html: str) -> str:
    """Leave out the largest script."""
    return html.replace(max(re.findall(r"<script>(.*?)</script>", html, re.DOTALL), key=len), "")


@cache
def small() -> tuple:
    return make_info(bert()), make_records(60), THREE


@cache
def small_html() -> str:
    return render(*small())


def brute_front(records, objectives) -> set[int]:
    rows = {r.number: [o.loss(r.values[o.name]) for o in objectives] for r in records if r.state == "complete"}
    return {
        n
        for n, row in rows.items()
        if not any(all(a <= b for a, b in zip(x, row, strict=True)) and x != row for x in rows.values())
    }


def test_hostile_names_are_text_and_nothing_else():
    html = render(*hostile_run(), title=HOSTILE, adapter_dirs=dict.fromkeys(range(40), HOSTILE))
    page = Page(html)
    assert HOSTILE not in html
    assert "<img" not in without_plotly(html)
    assert not [tag for tag, _ in page.tags if tag in ("img", "b>", "iframe", "object", "embed", "link")]
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    # It is there to be read, though: in the heading, the tables and the request.
    assert page.text.count(HOSTILE) > 20
    assert HOSTILE in json.dumps(page.table)


def test_no_json_in_a_script_can_end_the_script():
    page = Page(render(*hostile_run()))
    raw = [text for kind, text in page.scripts if kind == "application/json"]
    assert len(raw) == 4
    assert not [text for text in raw if "<" in text or "&" in text or ">" in text]


def texts(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def test_plotly_s_own_html_is_escaped_in_titles_legends_and_hover_texts():
    page = Page(render(*hostile_run()))
    front, history = page.data[0], page.data[2]
    assert "views" in history
    # The names of the views go on buttons, as text.
    for plot in (front, history):
        shown = [*texts(plot["columns"]), *(t for v in plot["views"] for t in texts([v["data"], v["layout"]]))]
        assert [text for text in shown if "&lt;/script" in text]
        assert not [text for text in shown if re.search(r"<(?!/?b>|br>)", text)]


def test_the_page_loads_nothing_and_runs_only_its_own_scripts():
    html = small_html()
    page = Page(html)
    for _, attrs in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            assert (attrs.get(name) or "#").startswith("#")
    assert not re.search(r"@import|url\(", html[: html.index("</style>")])
    policy = next(attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs)
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(hashes) == 2
    allowed = " ".join(f"'sha256-{code}'" for code in hashes)
    assert f"script-src {allowed};" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy


def test_plotly_s_button_that_sends_the_data_away_is_gone():
    own = re.findall(r"<script>(.*?)</script>", small_html(), re.DOTALL)[1]
    assert "showSendToCloud: false" in own
    assert 'plotlyServerURL: ""' in own


@pytest.mark.parametrize("n_objectives", [1, 2, 3, 4])
def test_front_in_the_page_equals_brute_force(n_objectives):
    info, records, _ = small()
    records = [
        replace(r, values={**r.values, "train_seconds": r.measurement.train_seconds}) if r.measurement else r
        for r in records
    ]
    objectives = [*THREE, OBJECTIVES["train_seconds"]][:n_objectives]
    page = Page(render(info, records, objectives))
    on = brute_front(records, objectives)
    assert set(page.plot["columns"]["front"]) == on
    complete = {r.number for r in records if r.state == "complete"}
    assert set(page.plot["columns"]["rest"]) == complete - on
    assert {n for n, keep in enumerate(page.table["front"]) if keep} == on
    assert set(map(int, page.grids["grids"])) == on == set(page.grids["order"])
    assert len(page.plot["views"]) == {1: 1, 2: 1, 3: 4, 4: 7}[n_objectives]


def test_picks_are_named_where_they_stand():
    chosen = picks(*small()[1:])
    table = Page(small_html()).table
    named = dict(zip(table["columns"][0]["values"], table["columns"][2]["values"], strict=True))
    for name, number in chosen.items():
        assert name.capitalize() in named[number]
    assert sum(bool(name) for name in named.values()) == len(set(chosen.values()))


def test_the_line_between_two_objectives_is_their_own_front():
    page = Page(small_html())
    for view, (i, j) in zip(page.plot["views"], [(0, 1), (0, 2), (1, 2)], strict=False):
        on = brute_front(small()[1], [THREE[i], THREE[j]])
        scale = {"quality": 1, "params": 1, "memory": 2**20}
        points = {
            tuple(r.values[THREE[k].name] / scale[THREE[k].name] for k in (j, i)) for r in small()[1] if r.number in on
        }
        line = next(t for t in view["data"] if t.get("mode") == "lines")
        assert set(zip(line["x"], line["y"], strict=True)) == points
        assert line["x"] == sorted(line["x"])


def test_parameters_are_drawn_on_a_log_axis():
    views = Page(small_html()).plot["views"]
    assert views[0]["layout"]["xaxis"]["type"] == "log"
    assert views[0]["layout"]["yaxis"]["type"] == "linear"
    assert views[3]["layout"]["scene"]["xaxis"]["type"] == "log"


def test_table_holds_every_trial_with_numbers_to_sort_by():
    records = small()[1]
    table = Page(small_html()).table
    columns = {c["title"]: c for c in table["columns"]}
    assert columns["trial"]["values"] == [r.number for r in records]
    assert columns["state"]["values"] == [r.state for r in records]
    for title, name in (("accuracy", "quality"), ("trainable parameters", "params"), ("peak memory", "memory")):
        assert columns[title]["values"] == [r.values.get(name) for r in records]
    assert columns["learning rate"]["values"] == [r.plan.learning_rate for r in records]
    assert columns["time"]["values"] == [r.seconds for r in records]
    for row, record in enumerate(records):
        found = {table["names"][int(index)]: value for index, value in table["values"][row].items()}
        assert found == record.candidate.values
        index = table["traceback"][row]
        assert (table["tracebacks"][index] if index is not None else "") == record.traceback


def test_grid_holds_every_size_of_the_plan():
    records = small()[1]
    place = {x.name: (x.layer, x.kind) for x in bert().linears}
    by_number = {r.number: r for r in records}
    grids = Page(small_html()).grids["grids"]
    seen = 0
    for number, grid in grids.items():
        plan = by_number[int(number)].plan
        expected = {place[name]: str(size) for name, size in plan.sizes.items() if name in place}
        found = {
            (layer, kind): text
            for layer, row in enumerate(grid["rows"])
            for kind, (text, level) in zip(grid["kinds"], row, strict=True)
            if level and kind != "norm"
        }
        assert found == expected
        assert bool(grid["rows"]) == bool(plan.sizes)
        assert plan.sizes or "virtual tokens" in grid["note"] or "before the text" in grid["note"]
        seen += bool(expected)
    assert seen > 3


def test_norms_have_a_column_and_those_outside_the_layers_are_counted():
    records = [r for r in make_records(200) if r.plan.method == "ln_tuning" and r.state == "complete"][:1]
    grid = Page(render(make_info(bert()), records, THREE)).grids["grids"][str(records[0].number)]
    assert grid["kinds"][-1] == "norm"
    assert "1" in [row[-1][0] for row in grid["rows"]]
    assert grid["note"] == "and 1 module outside the layers"


RUNS = {
    "no trials": ([], THREE),
    "all failed": (make_records(7, fail=1.0), THREE),
    "one": (make_records(1, fail=0.0), THREE),
    "two equal": ([replace(make_records(1, fail=0.0)[0], number=n) for n in (0, 1)], THREE),
    "one objective": (make_records(20), THREE[:1]),
    "one cost alone": (make_records(20), THREE[1:2]),
    "loss": (make_records(40, anatomy=llama(4)), LOSS),
}


@pytest.mark.parametrize("name", RUNS)
def test_any_run_can_be_reported(name):
    records, objectives = RUNS[name]
    page = Page(render(make_info(bert()), records, objectives))
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == list(SECTIONS)
    page.data  # noqa: B018 - parses every piece of JSON, and refuses NaN
    complete = [r for r in records if r.state == "complete"]
    assert ("No configuration to recommend" in page.text) == (not complete)


def test_without_a_complete_trial_plotly_is_left_out_and_the_reasons_are_told():
    html = render(make_info(bert()), make_records(7, fail=1.0), THREE)
    assert len(html) < 100_000
    assert "Why the trials ended" in html


def test_a_custom_runner_needs_neither_anatomy_nor_plan():
    info, records, objectives = hostile_run()
    page = Page(render(info, records, objectives))
    assert "autopeft does not know where it acts" in page.text
    assert "As the custom runner gave it" not in page.text  # this one names its measure itself
    bare = [replace(r, measurement=None) for r in records]
    Page(render(replace(info, request={}, data={}, model={}), bare, objectives))


def test_numbers_that_json_lacks_become_text():
    info = make_info(bert(), request={"a": float("nan"), "b": [float("inf")]}, hardware={"x": float("-inf")})
    records = make_records(15)
    odd = replace(records[0], candidate=type(records[0].candidate)({"method": "lora", "x": 1.5}))
    page = Page(render(info, [odd, *records[1:]], THREE))
    assert page.data
    assert "-inf" in page.text


def test_a_path_with_undecodable_bytes_does_not_stop_the_report():
    html = render(make_info(bert(), model={"name": "a\udc80b"}), make_records(3, fail=0.0), THREE)
    assert html.encode("utf-8")


def test_non_finite_values_of_a_complete_trial_are_refused():
    record = TrialRecord(0, "complete", small()[1][0].candidate, 0, values={o.name: float("nan") for o in THREE})
    with pytest.raises(ValueError, match="finite"):
        render(make_info(bert()), [record], THREE)
    with pytest.raises(ValueError, match="at least one objective"):
        render(make_info(bert()), [], [])


def test_5000_trials_stay_below_15_mb():
    model = llama()
    html = render(make_info(model), make_records(5000, anatomy=model), LOSS)
    assert len(html.encode()) < 15e6
    page = Page(html)
    assert len(page.table["columns"][0]["values"]) == 5000


def test_long_tracebacks_and_reasons_do_not_swell_the_file():
    one = make_records(1, fail=1.0)[0]
    records = [
        replace(one, number=n, state="failed", reason="x" * 5000, traceback="y" * 100_000 + str(n)) for n in range(1000)
    ]
    html = render(make_info(bert()), records, THREE)
    assert len(html) < 4e6
    table = Page(html).table
    assert any("records.jsonl" in text for text in table["tracebacks"])


def test_equal_tracebacks_stand_once():
    one = make_records(1, fail=1.0)[0]
    records = [replace(one, number=n, state="failed", traceback="boom") for n in range(50)]
    assert Page(render(make_info(bert()), records, THREE)).table["tracebacks"] == ["boom"]


def test_the_answer_says_what_was_measured_and_how_sure_it_is():
    text = " ".join(Page(small_html()).text.split())
    knee = Context(*small()).picks["knee"]
    assert f"trial {knee.number}" in text
    assert "LoRA with one rank in every linear is trial" in text
    assert "standard error" in text
    assert "not measured on a GPU" in text
    for part in ("a1b2c3d4", "8d1f0c9a", "12 duplicate rows dropped", "choices: [lora, ia3]", "2.13.0", "22,713,216"):
        assert part in text


@pytest.mark.parametrize(
    ("kind", "words"),
    [("cuda_allocated", "max_memory_allocated"), ("tensor_storage", "not measured on a GPU"), ("", "custom runner")],
)
def test_memory_is_named_for_what_it_is(kind, words):
    record = make_records(1, fail=0.0)[0]
    record = replace(record, measurement=replace(record.measurement or Measurement(0), memory_kind=kind))
    assert words in render(make_info(bert()), [record], THREE)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_said_in_words(name):
    plan = make_records(1, fail=0.0)[0].plan
    assert method_sentence(replace(plan, method=name, config={}, base=BaseFormat(32)))


def test_percent_is_of_the_base_and_the_head_stands_apart():
    record = make_records(1, fail=0.0)[0]
    plan = record.plan
    text = " ".join(Page(render(make_info(bert()), [record], THREE)).text.split())
    assert f"adapter {plan.adapter_params:,}, {plan.adapter_params / 22_713_216 * 100:.3g}% of the base model" in text
    assert f"new task head {bert().head_params:,}" in text
