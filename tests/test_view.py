from __future__ import annotations

import dataclasses
import io
import re
import time

import pytest
from rich.console import Console

from autopeft.candidates import AdapterPlan, BaseFormat, Candidate, Recipe
from autopeft.labels import describe, one_line, show_rate, show_value
from autopeft.records import RunInfo, TrialRecord
from autopeft.view import LiveView, PlainView, View, make_view

INFO = RunInfo(
    request={"trials": 10, "time": "30min"},
    objectives=(
        {"name": "quality", "goal": "maximize", "unit": ""},
        {"name": "params", "goal": "minimize", "unit": "parameters"},
    ),
    space="",
    created_at="",
    versions={},
    hardware={},
    parameter_limit=100_000,
)
LORA = Candidate({"method": "lora", "lora.rank[0-1]": 8, "lora.rank[2-3]": 8, "lora.share[query]": 1.0, "bits": 32})


def record(number: int, state="complete", **fields) -> TrialRecord:
    values = {"quality": 0.91234, "params": 1152.0} if state == "complete" else {}
    return TrialRecord(number, state, LORA, 0, values=values, **fields)


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ({"lora.rank[0-1]": 8, "lora.rank[2-3]": 8}, "lora r=8"),
        ({"lora.rank[0-1]": 8, "lora.rank[2-3]": 0, "lora.rank[10-11]": 4}, "lora r=8/0/4"),
        ({"lora.share[query]": 1.0, "lora.share[up]": 1.0}, "lora all-linear"),
        ({"lora.share[up]": 0.5, "lora.share[query]": 1.0, "lora.share[key]": 0.5}, "lora query+(key,up)*0.5"),
        ({"lora.share[up]": 0.5, "lora.share[query]": 0}, "lora up*0.5"),
        ({"lora.share[up]": 0.0}, "lora no kind"),
        ({"lora.dora": True, "lora.rslora": False, "lora.rank": 4}, "lora+dora r=4"),
        ({"lora.alpha": "2r", "lora.dropout": 0.05}, "lora"),
        ({"bits": 4, "lr_multiple": 2.0}, "lora 4-bit lr*2"),
        ({"bits": 32}, "lora"),
        ({"method": "ia3", "ia3.layers[0-1]": 1, "ia3.layers[2]": 0}, "ia3 layers 0-1"),
        ({"method": "ia3", "ia3.layers[0-1]": 1, "ia3.layers[2]": 1}, "ia3 all layers"),
        ({"method": "ia3", "ia3.layers[0-1]": 0}, "ia3 layers none"),
        ({f"lora.rank[{i}]": i for i in range(12)}, "lora r=0..11"),
        ({f"lora.rank[{i}]": 4 for i in range(12)}, "lora r=4"),
        ({"lora.share": 0.5}, "lora all-linear*0.5"),
        ({f"lora.share[{i}/query]": float(i > 1) for i in range(12)}, "lora 10 of 12 places"),
        ({"method": "ia3"} | {f"ia3.layers[{i}]": i % 2 for i in range(28)}, "ia3 14 of 28 layers"),
        ({"method": "p_tuning", "p_tuning.tokens": 10, "p_tuning.width": 64}, "p_tuning tokens=10 width=64"),
    ],
)
def test_label_of_a_candidate(values, label):
    assert describe(Candidate({"method": "lora", **values})) == label


def test_label_of_any_other_space_shows_its_first_values():
    assert describe(Candidate({"depth": 3, "rate": 0.123456})) == "depth=3 rate=0.123"
    assert describe(Candidate({f"p{i}": i for i in range(8)})).endswith("p5=5 …")
    assert describe(Candidate({})) == "(nothing to choose)"


def test_label_of_a_record_has_the_absolute_learning_rate_and_the_plan_s_method():
    plan = AdapterPlan("ia3", {}, {}, 10, BaseFormat(8), Recipe(0.0025))
    trial = TrialRecord(0, "complete", Candidate({"lr_multiple": 5.0}), 0, plan=plan)
    assert describe(trial) == "ia3 8-bit lr=2.5e-3"


def test_values_by_unit():
    assert show_value(1_330_000, "parameters") == "1.33M"
    assert show_value(75, "s") == "1m15s"
    assert show_value(12.5, "ms") == "12.5 ms"
    assert (show_rate(1e-10), show_rate(0.5), show_rate(3)) == ("1e-10", "5e-1", "3e0")


def test_a_line_stays_a_line_and_steers_no_terminal():
    assert one_line(" a\nb\x1b[2Jc\r\u2028d ") == "a b [2Jc  d"


def plain(*, stream=None) -> tuple[PlainView, io.StringIO]:
    stream = stream or io.StringIO()
    return PlainView(stream), stream


def play(view: View) -> None:
    first = record(0)
    view.started(INFO, [], [])
    view.note("a\nnote \x1b[31m")
    view.proposed(0, describe(LORA))
    view.finished(first, [first])
    view.proposed(1, "another\nlabel")
    view.finished(record(1, "failed", reason="boom\nbang"), [first])
    view.finished(record(2, "infeasible"), [first])
    view.closed("done\nbye")


def test_plain_view_prints_one_line_an_event():
    view, stream = plain()
    with view:
        play(view)
    lines = [re.sub(r" · about [^)]* left", "", line) for line in stream.getvalue().splitlines()]
    assert lines == [
        "search for quality, params; at most 100,000 trainable parameters, at most 30m00s",
        "a note  [31m",
        "trial 0 started: lora r=8 all-linear",
        "trial 0 complete: lora r=8 all-linear: quality 0.9123, params 1,152; best so far trial 0, 1 on the front "
        "(1 of 10 done · 0 running)",
        "trial 1 started: another label",
        "trial 1 failed: lora r=8 all-linear: boom bang; best so far trial 0, 1 on the front "
        "(1 of 10 done · 0 running · 1 failed)",
        "trial 2 infeasible: lora r=8 all-linear: no reason given; best so far trial 0, 1 on the front "
        "(1 of 10 done · 0 running · 1 failed · 1 infeasible)",
        "done",
        "bye",
    ]


def test_a_trial_that_paused_is_counted_until_it_goes_on():
    view, stream = plain()
    with view:
        view.started(INFO, [record(7, "paused", reason="at step 1 of 9")], [])
        view.proposed(0, "a")
        view.finished(record(0, "paused", reason="at step 1 of 9"), [])
        view.proposed(0, "a")
        view.proposed(7, "b")
        view.finished(record(0), [record(0)])
    lines = [re.sub(r" · about [^)]* left", "", line) for line in stream.getvalue().splitlines()]
    assert lines[1:] == [
        "trial 0 started: a",
        "trial 0 paused: lora r=8 all-linear: at step 1 of 9 (0 of 10 done · 0 running · 2 paused)",
        "trial 0 goes on: a",
        "trial 7 goes on: b",
        "trial 0 complete: lora r=8 all-linear: quality 0.9123, params 1,152; best so far trial 0, 1 on the front "
        "(1 of 10 done · 1 running)",
    ]


def test_plain_view_writes_to_a_log_in_ascii():
    raw = io.BytesIO()
    view = PlainView(io.TextIOWrapper(raw, encoding="ascii"))
    view.note("модель \udc80")
    assert raw.getvalue().startswith(b"\\u043c")


def terminal(width: int = 140) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, height=40, color_system=None, legacy_windows=False
    )


def shown(view: LiveView) -> str:
    console = terminal()
    console.print(view._render())
    return console.file.getvalue()


def test_live_view_shows_counts_front_and_what_is_running():
    view = LiveView(terminal())
    view.started(INFO, [], [])
    trials = [record(n) for n in range(12)]
    for trial in trials:
        view.proposed(trial.number, "label")
        view.finished(trial, trials[: trial.number + 1])
    view.finished(record(12, "failed", reason="[bold]boom[/]"), trials)
    view.proposed(13, "[red]not markup[/red]\n")
    text = shown(view)
    for part in ("12 of 10 done", "1 running", "1 failed", "elapsed", "left", "running 13: [red]not markup[/red]"):
        assert part in text
    assert "last: trial 12 failed: lora r=8 all-linear: [bold]boom[/]" in text
    assert "8 best of 12" in text
    assert text.count("0.9123") == 8
    assert "at most 100,000 trainable parameters" in text


def test_time_left_is_estimated_from_the_usual_pace_and_never_beyond_the_time_limit():
    by_number = dataclasses.replace(INFO, request={"trials": 10})
    view = LiveView(terminal())
    view.started(by_number, [], [])
    for number in (0, 1):
        view.proposed(number, "label")
    for number in (0, 1):
        view.finished(dataclasses.replace(record(number), seconds=20.0), [])
    assert "about 1m20s left" in shown(view)  # 8 trials of 20 s, two at once
    view.started(dataclasses.replace(INFO, request={"trials": 10, "time": 30}), [], [])
    view.finished(dataclasses.replace(record(2), seconds=20.0), [])
    assert re.search(r"about (30|29)\.\ds left", shown(view))


def test_a_resumed_run_is_shown_with_what_is_done_already():
    done = [record(0), record(1)]
    view = LiveView(terminal())
    view.started(INFO, done, done[:1])
    assert "2 of 10 done" in shown(view)
    assert shown(view).count("0.9123") == 1


def test_live_view_renews_itself_while_the_main_thread_does_something_else():
    console = terminal()
    with LiveView(console) as view:
        view.started(INFO, [], [])
        view.proposed(7, "while the main thread trains")
        deadline = time.monotonic() + 20
        while "while the main thread trains" not in console.file.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "while the main thread trains" in console.file.getvalue()


def test_live_view_leaves_notes_and_the_summary():
    console = terminal()
    with LiveView(console) as view:
        play(view)
    text = console.file.getvalue()
    assert "a note" in text
    assert "\x1b[31m" not in text
    assert text.rstrip().endswith("bye")


def test_both_views_take_a_run_without_limits_and_records_of_any_state():
    bare = RunInfo({}, (), "", "", {}, {})
    for view in (LiveView(terminal()), plain()[0]):
        view.started(bare, [], [])
        for state in ("stopped", "duplicate", "complete"):
            view.finished(record(0, state), [])


def test_a_stream_that_is_no_terminal_gets_plain_lines():
    assert isinstance(make_view(io.StringIO()), PlainView)
