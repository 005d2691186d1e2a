"""The Python face: search, resume, estimate, load, and what a Result tells."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from fruits import SMALL, fruit_rows, write_jsonl

import autopeft as ap
from autopeft.assembly import assemble
from autopeft.errors import (
    AllTrialsFailedError,
    DamagedRunError,
    InfeasibleError,
    RequestError,
    SourceError,
    UnknownNameError,
)
from autopeft.finals import baseline
from autopeft.request_fields import make_request
from autopeft.space_file import read_space

SPACE = {
    "parameters": {
        "method": {"choices": ["line", "curve"]},
        "width": {"ordinal": [1, 2, 4, 8], "size": True},
        "bend": {"low": 0.1, "high": 10.0, "log": True, "when": {"method": ["curve"]}},
    },
    "start": [{"method": "line", "width": 4}],
}


def measure(candidate: ap.Candidate, steps: int) -> ap.Measurement:
    bend = float(candidate.values.get("bend", 0.0))
    return ap.Measurement(quality=float(candidate["width"]) - abs(bend - 1) + steps / 100, trainable_params=3)


def width(candidate: ap.Candidate) -> int:
    return int(candidate["width"])


# --- finalists -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repeated(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> ap.Result:
    """A run whose front was trained again; its data has enough rows for a test split."""
    folder = tmp_path_factory.mktemp("repeated")
    data = write_jsonl(fruit_rows(150), folder / "fruits.jsonl")
    return ap.search(**{**small, "data": str(data), "final_seeds": 2, "seed": 5}, out=str(folder / "run"))


def test_the_front_is_trained_again_and_judged_on_the_test_split(repeated: ap.Result) -> None:
    numbers = {r.number for r in baseline(repeated.records, repeated.objectives)}
    numbers |= {int(number) for number in repeated.front["trial"]}
    assert {(f.number, f.seed) for f in repeated.finals} == {(n, s) for n in numbers for s in (6, 7)}
    for final in repeated.finals:
        assert final.state == "complete"
        assert final.measurement is not None
        assert final.values["test"] == final.measurement.metrics["accuracy"]
        assert final.values["validation"] == final.measurement.metrics["validation_accuracy"]
    by_number = {r.number: r for r in repeated.records}
    for row in repeated.finalists.to_dict("records"):
        own = [f.values["test"] for f in repeated.finals if f.number == row["trial"]]
        assert row["test"] == pytest.approx(sum(own) / 2)
        assert row["search"] == by_number[row["trial"]].values["quality"]
        assert (repeated.path / "adapters" / f"{row['trial']:04d}").is_dir()
    assert "finalists, trained again" in (repeated.path / "report.html").read_text()
    assert repeated.verdict
    assert repeated.to_dict()["finalists"][0]["seeds"] == 2


def test_a_repeat_is_the_training_with_that_seed(repeated: ap.Result, small: dict[str, Any], tmp_path: Path) -> None:
    """The repeats differ from the search in the seed and nothing else: the search's own seed gives its own values."""
    run = Path(shutil.copytree(repeated.path, tmp_path / "run"))
    (run / "finals.jsonl").unlink()
    request = yaml.safe_load((run / "request.yaml").read_text())
    (run / "request.yaml").write_text(yaml.safe_dump({**request, "seed": 4}))  # so that the first repeat has seed 5
    again = ap.resume(run, final_seeds=1)
    assert {f.seed for f in again.finals} == {5}
    searched = {r.number: r for r in repeated.records}
    for final in again.finals:
        assert final.measurement is not None
        assert final.measurement.metrics["validation_loss"] == searched[final.number].measurement.metrics["loss"]  # type: ignore[union-attr]


def test_a_search_ends_when_little_more_is_expected(tmp_path: Path) -> None:
    """The front of SPACE is eight widths at their best bend: long before 200 trials all of it is found."""
    found = {}
    for share in (0.05, 0.005):
        result = ap.search(
            runner=measure, cost=width, space=SPACE, objectives=["quality", "params"], budget=8, trials=200, steps=5,
            until_converged=share, out=str(tmp_path / str(share)),
        )  # fmt: skip
        found[share] = len(result.records)
    assert 14 <= found[0.05] <= found[0.005] < 200
    with pytest.raises(RequestError, match="until_converged: tpe expects nothing"):
        ap.search(runner=measure, space=SPACE, sampler="tpe", until_converged=0.01, out=str(tmp_path / "run"))


def test_a_runner_of_ones_own_has_no_repeats(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="final_seeds: 2"):
        ap.search(runner=measure, space=SPACE, trials=2, final_seeds=2, out=str(tmp_path / "run"))


# --- the result ------------------------------------------------------------------------------------------------------


def test_front_is_a_table_best_quality_first(done: ap.Result) -> None:
    assert isinstance(done.front, pd.DataFrame)
    assert list(done.front.columns[:4]) == ["trial", "quality", "params", "memory"]
    assert list(done.front["quality"]) == sorted(done.front["quality"], reverse=True)
    assert set(done.front["trial"]) <= set(done.trials["trial"])


def test_a_search_that_trains_together_records_the_same(
    small: dict[str, Any], done: ap.Result, tmp_path: Path, group_sizes: list[int]
) -> None:
    together = ap.search(**small, together=3, out=str(tmp_path / "run"))
    assert group_sizes
    assert max(group_sizes) > 1
    for one, other in zip(done.records, together.records, strict=True):
        assert one.candidate == other.candidate
        assert other.values == pytest.approx(one.values, rel=1e-6)


def test_trials_are_all_there_with_their_state(done: ap.Result) -> None:
    assert list(done.trials["trial"]) == [0, 1, 2]
    assert set(done.trials["state"]) == {"complete"}


def test_picks_are_points_of_the_front(done: ap.Result) -> None:
    assert set(done.picks) == {"best", "knee", "smallest"}
    front = done.front.set_index("trial")
    assert front.loc[done.best("best").record.number, "quality"] == front["quality"].max()
    assert front.loc[done.best("smallest").record.number, "params"] == front["params"].min()


def test_unknown_pick_says_which_there_are(done: ap.Result) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'knee'"):
        done.best("knie")


def test_every_adapter_of_the_front_loads_and_counts_what_was_told(done: ap.Result) -> None:
    for number in done.front["trial"]:
        record = next(r for r in done.records if r.number == number)
        adapter = done.path / "adapters" / f"{number:04d}"
        from safetensors.torch import load_file

        saved = sum(tensor.numel() for tensor in load_file(adapter / "adapter_model.safetensors").values())
        assert saved == record.values["params"]
        assert not ap.load(adapter).training


def test_peft_itself_loads_the_pick_with_the_logits_of_ours(done: ap.Result) -> None:
    import transformers
    from peft import PeftModel

    pick = done.best("best")
    torch.manual_seed(done.info.request["seed"])
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        done.info.request["model"], num_labels=3, ignore_mismatched_sizes=True
    )
    theirs = PeftModel.from_pretrained(base, str(pick.adapter_dir)).eval()
    ids = torch.arange(6, 30).reshape(2, 12)
    with torch.no_grad():
        assert torch.equal(theirs(input_ids=ids).logits, pick.load()(input_ids=ids).logits)


def test_result_can_be_had_of_any_run_at_any_time(done: ap.Result) -> None:
    pd.testing.assert_frame_equal(ap.Result(done.path).trials, done.trials)


def test_load_of_a_folder_that_is_no_adapter_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no adapter"):
        ap.load(tmp_path)


def test_result_of_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(DamagedRunError, match="no run directory"):
        ap.Result(tmp_path)


# --- search ----------------------------------------------------------------------------------------------------------


def test_public_names_stay_functions_when_subpackages_are_loaded(done: ap.Result) -> None:
    from autopeft.search.study import Study

    assert Study.__module__ == "autopeft.search.study"
    assert callable(ap.search)
    assert all(not isinstance(getattr(ap, name), type(sys)) for name in ap.__all__)


def test_same_seed_gives_the_same_candidates_and_losses(small: dict[str, Any], tmp_path: Path) -> None:
    fields = {**small, "trials": 5, "steps": 3}
    runs = [ap.search(**fields, out=str(tmp_path / name)) for name in ("a", "b")]
    for one, other in zip(runs[0].records, runs[1].records, strict=True):
        assert one.plan == other.plan
        assert one.measurement is not None
        assert other.measurement is not None
        assert one.measurement.curve == other.measurement.curve
        assert one.measurement.metrics == other.measurement.metrics


def test_cut_off_run_proposes_what_the_whole_one_would_have(small: dict[str, Any], tmp_path: Path) -> None:
    fields = {**small, "trials": 6, "steps": 1}
    whole = ap.search(**fields, out=str(tmp_path / "whole"))
    ap.search(**{**fields, "trials": 4}, out=str(tmp_path / "cut"))
    resumed = ap.resume(tmp_path / "cut", trials=6)
    assert [r.plan for r in resumed.records] == [r.plan for r in whole.records]


def test_base_is_the_same_after_every_trial(done: ap.Result) -> None:
    by_bits: dict[int, set[str]] = {}
    for record in done.records:
        assert record.plan is not None
        assert record.measurement is not None
        by_bits.setdefault(record.plan.bits, set()).add(record.measurement.base_checksum)
    assert all(len(checksums) == 1 for checksums in by_bits.values())


def test_checkpoint_with_a_head_for_other_classes_gets_a_new_one(done: ap.Result, bert_folder: Path) -> None:
    assert len(json.loads((bert_folder / "config.json").read_text())["id2label"]) == 5
    assert done.info.data["label_names"] == ["apple", "lemon", "plum"]
    assert done.best().load().get_base_model().classifier.out_features == 3


def test_own_objective_is_searched_and_reported(small: dict[str, Any], tmp_path: Path) -> None:
    @ap.objective(goal="minimize", unit="nats")
    def loss(measurement: ap.Measurement) -> float:
        return measurement.metrics["loss"]

    result = ap.search(**{**small, "objectives": ["quality", loss]}, out=str(tmp_path / "run"))
    assert list(result.front.columns[:3]) == ["trial", "quality", "loss"]
    assert [dict(o) for o in result.info.objectives][1] == {"name": "loss", "goal": "minimize", "unit": "nats"}
    again = ap.resume(tmp_path / "run", trials=4, objectives=[loss])
    assert again.records[3].values["loss"] == again.records[3].measurement.metrics["loss"]  # type: ignore[union-attr]
    assert list(ap.Result(tmp_path / "run").front.columns[:3]) == ["trial", "quality", "loss"]


def test_resume_without_the_own_objective_asks_for_it(small: dict[str, Any], tmp_path: Path) -> None:
    own = ap.Objective("mine", "maximize", "", lambda m: m.quality)
    ap.search(**{**small, "trials": 1, "objectives": [own, "params"]}, out=str(tmp_path / "run"))
    with pytest.raises(RequestError, match=r"'mine'.*objectives="):
        ap.resume(tmp_path / "run", trials=2)


def test_own_objective_that_raises_is_the_trials_fault(small: dict[str, Any], tmp_path: Path) -> None:
    own = ap.Objective("mine", "maximize", "", lambda m: m.metrics["bleu"])
    with pytest.raises(AllTrialsFailedError, match="objective mine: KeyError: 'bleu'"):
        ap.search(**{**small, "objectives": [own, "params"]}, out=str(tmp_path / "run"))


def test_bare_function_as_objective_is_told_to_need_a_goal(small: dict[str, Any]) -> None:
    def mine(measurement: ap.Measurement) -> float:
        return measurement.quality

    with pytest.raises(RequestError, match=r"autopeft\.objective\(goal"):
        ap.search(**{**small, "objectives": ["quality", mine]})


def test_space_may_be_fields_or_a_file(small: dict[str, Any], tmp_path: Path) -> None:
    fields = {
        "parameters": {"method": {"choices": ["lora"]}, "lora.rank": {"ordinal": [1, 2, 4], "size": True}},
        "start": [{"method": "lora", "lora.rank": 2}],
    }
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(fields))
    plans = []
    for name, space in (("fields", fields), ("file", tmp_path / "space.yaml")):
        result = ap.search(**{**small, "space": space, "trials": 2}, out=str(tmp_path / name))
        plans.append([r.plan for r in result.records])
        assert {r.candidate["method"] for r in result.records} == {"lora"}
        assert result.records[0].candidate["lora.rank"] == 2
    assert plans[0] == plans[1]


def test_exhausted_space_ends_the_search(small: dict[str, Any], tmp_path: Path) -> None:
    fields = {"parameters": {"method": {"choices": ["lora"]}, "lora.rank": {"ordinal": [1, 2]}}}
    result = ap.search(**{**small, "space": fields, "trials": 10, "steps": 1}, out=str(tmp_path / "run"))
    assert sorted(r.candidate["lora.rank"] for r in result.records) == [1, 2]


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_base_is_searched(small: dict[str, Any], tmp_path: Path, bits: int) -> None:
    fields = {
        "parameters": {
            "method": {"choices": ["lora"]},
            "bits": {"choices": [bits]},
            "lora.rank": {"ordinal": [1, 2]},
        }
    }
    result = ap.search(**{**small, "space": fields, "trials": 1}, out=str(tmp_path / "run"))
    assert result.records[0].plan is not None
    assert result.records[0].plan.bits == bits
    assert result.best().load() is not None


# --- a runner of one's own -------------------------------------------------------------------------------------------


def test_own_runner_is_searched_without_model_or_data(tmp_path: Path) -> None:
    result = ap.search(runner=measure, space=SPACE, trials=8, steps=5, out=str(tmp_path / "run"))
    assert len(result.trials) == 8
    assert result.front["quality"].max() == result.trials["quality"].max()
    assert (tmp_path / "run" / "report.html").exists()
    assert not (tmp_path / "run" / "adapters").exists()


def test_own_runner_is_held_to_a_budget_by_its_cost(tmp_path: Path) -> None:
    result = ap.search(runner=measure, cost=width, budget=4, space=SPACE, trials=8, steps=5, out=str(tmp_path / "run"))
    assert max(r.candidate["width"] for r in result.records) <= 4


def test_own_runner_resumes_only_with_the_runner(tmp_path: Path) -> None:
    ap.search(runner=measure, space=SPACE, trials=2, steps=5, out=str(tmp_path / "run"))
    with pytest.raises(RequestError, match="runner"):
        ap.resume(tmp_path / "run", trials=4)
    assert len(ap.resume(tmp_path / "run", trials=4, runner=measure).records) == 4


def test_own_runner_needs_a_space(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="space"):
        ap.search(runner=measure, trials=2)


def test_own_runner_that_returns_a_number_is_told_what_to_return(tmp_path: Path) -> None:
    with pytest.raises(AllTrialsFailedError, match="Measurement"):
        ap.search(runner=lambda c, s: 0.5, space=SPACE, trials=2, steps=1, out=str(tmp_path / "run"))  # type: ignore[arg-type,return-value]


def test_own_runner_named_by_module_runs_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_training.py").write_text(
        textwrap.dedent("""
            import os
            import autopeft as ap

            def run(candidate, steps):
                return ap.Measurement(quality=float(candidate["width"]) * steps, metrics={"pid": os.getpid()})
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    result = ap.search(runner="my_training:run", space=SPACE, trials=6, steps=2, workers=2, out=str(tmp_path / "run"))
    assert {r.state for r in result.records} == {"complete"}
    import os

    assert os.getpid() not in {r.measurement.metrics["pid"] for r in result.records if r.measurement}


def test_lambda_as_runner_on_ray_is_told_why_not(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be imported by another process"):
        ap.search(
            runner=lambda c, s: measure(c, s), space=SPACE, trials=2, executor="ray", workers=1,
            out=str(tmp_path / "run"),
        )  # fmt: skip


# --- resume ----------------------------------------------------------------------------------------------------------


def test_resume_with_more_trials_keeps_what_there_is(a_run: Path) -> None:
    before = ap.Result(a_run).records
    after = ap.resume(a_run, trials=5).records
    assert after[: len(before)] == before
    assert len(after) == 5


@pytest.mark.parametrize("change", [{"steps": 9}, {"seed": 1}, {"budget": "1%"}, {"model": "other"}, {"trails": 3}])
def test_resume_refuses_what_a_run_keeps(a_run: Path, change: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"{next(iter(change))}: a run keeps .* may change"):
        ap.resume(a_run, **change)


def test_run_of_ray_can_be_resumed_in_this_process(a_run: Path) -> None:
    stored = yaml.safe_load((a_run / "request.yaml").read_text())
    (a_run / "request.yaml").write_text(yaml.safe_dump({**stored, "executor": "ray", "workers": 2}))
    assert len(ap.resume(a_run, trials=4, executor="local").records) == 4


def test_resume_reads_nothing_but_the_run_and_the_model(small: dict[str, Any], fruits: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_bytes(fruits.read_bytes())
    ap.search(**{**small, "data": str(data), "trials": 1}, out=str(tmp_path / "run"))
    data.unlink()
    assert len(ap.resume(tmp_path / "run", trials=2).records) == 2


def test_moved_run_can_be_read_and_resumed(a_run: Path, tmp_path: Path) -> None:
    moved = a_run.rename(tmp_path / "elsewhere")
    result = ap.resume(moved, trials=4)
    assert len(result.records) == 4
    assert result.best().load() is not None


# --- estimate --------------------------------------------------------------------------------------------------------


def test_estimate_tells_sizes_and_what_fits(small: dict[str, Any]) -> None:
    rows = ap.estimate(**{k: v for k, v in small.items() if k not in SMALL or k == "space"}, budget="5%")
    assert {row.plan.method for row in rows} >= {"lora", "ia3", "ln_tuning"}
    limit = 0.05 * rows[0].base_params
    assert all(row.fits == (row.cost.trainable_params <= limit) for row in rows)


LINE = {"parameters": {"x": {"low": 0, "high": 1}}}


def test_relative_model_folder_means_the_same_from_any_other_folder(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(small["model"])
    monkeypatch.chdir(model.parent)
    run = tmp_path / "run"
    ap.search(**{**small, "model": f"./{model.name}", "trials": 1}, out=str(run))
    monkeypatch.chdir(tmp_path)
    result = ap.resume("run", trials=2)
    assert [r.state for r in result.records] == ["complete", "complete"]
    assert result.best("best").load() is not None


def test_budget_of_an_own_runner_without_its_cost_is_refused() -> None:
    with pytest.raises(RequestError, match=r"budget: 2M cannot be held to without `cost`"):
        ap.search(runner=lambda c, s: ap.Measurement(quality=1), space=LINE, budget="2M")


def test_a_none_is_the_default_of_an_own_runner_too(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("final_seeds", "budget", "executor", "objectives", "rungs"))
    result = ap.search(runner=measure, space=SPACE, trials=2, steps=5, out=str(tmp_path / "run"), **nothing)
    plain = ap.search(runner=measure, space=SPACE, trials=2, steps=5, out=str(tmp_path / "plain"))
    assert {**result.info.request, "out": ""} == {**plain.info.request, "out": ""}


def test_a_runner_that_leaves_the_parameters_to_the_cost_has_them_on_the_front(tmp_path: Path) -> None:
    result = ap.search(
        runner=lambda c, s: replace(measure(c, s), trainable_params=0), cost=width, budget=8, space=SPACE, trials=6,
        steps=5, objectives=["quality", "params"], out=str(tmp_path / "run"),
    )  # fmt: skip
    assert [r.values["params"] for r in result.records] == [width(r.candidate) for r in result.records]


@pytest.mark.parametrize("n_before", [2, 9])
def test_a_resumed_search_knows_what_it_knew(n_before: int, tmp_path: Path) -> None:
    @ap.objective(goal="minimize", unit="ms", known=lambda c: 3.0 + width(c) % 3)
    def latency(measurement: ap.Measurement) -> float:
        return 3.0 + measurement.trainable_params % 3

    fields: dict[str, Any] = {"runner": measure, "cost": width, "budget": 8, "space": SPACE, "steps": 5}
    asked = ["quality", "params", latency]
    whole = ap.search(**fields, objectives=asked, trials=12, out=str(tmp_path / "whole"))
    ap.search(**fields, objectives=asked, trials=n_before, out=str(tmp_path / "run"))
    resumed = ap.resume(tmp_path / "run", runner=measure, cost=width, objectives=[latency], trials=12)
    assert [r.candidate for r in resumed.records] == [r.candidate for r in whole.records]
    turned = replace(latency, goal="maximize")
    with pytest.raises(RequestError, match="latency is to maximize now, and the run was started to minimize it"):
        ap.resume(tmp_path / "run", runner=measure, cost=width, objectives=[turned], trials=13)


def test_what_is_known_is_asked_before_any_training_and_told_where_it_was_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def search(known: Any) -> ap.Result:
        own = ap.Objective("latency", "minimize", "ms", lambda m: 2.0, known)
        return ap.search(
            runner=measure, space=SPACE, objectives=["quality", own], trials=3, steps=5, out=str(tmp_path / "run")
        )

    for wrong in (lambda c: None, lambda c: 1 / 0, "2.0"):
        with pytest.raises(RequestError, match="objectives: `known` of latency"):
            search(wrong)
    assert not (tmp_path / "run").exists()
    search(lambda c: 2.5)
    said = capsys.readouterr()
    assert (said.out + said.err).count("latency is 2 where its `known` said 2.5") == 1


def test_a_goal_that_is_none_is_named() -> None:
    with pytest.raises(RequestError, match="goal 'min' of latency"):
        ap.objective(goal="min", name="latency")(lambda m: 1.0)  # type: ignore[arg-type]


def test_own_runner_takes_no_model_and_no_data() -> None:
    with pytest.raises(RequestError) as error:
        ap.search(
            runner=lambda c, s: ap.Measurement(quality=1),
            space=LINE,
            model="m",
            data="d",
        )
    assert [fault.partition(":")[0] for fault in error.value.faults] == ["model", "data"]


def test_own_runner_that_trains_more_than_its_cost_said_is_infeasible(tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match=r"it trained 5,000 parameters, more than 2,000"):
        ap.search(
            runner=lambda c, s: ap.Measurement(quality=1, trainable_params=5000),
            cost=lambda c: 1000,
            space=LINE,
            budget=2000,
            trials=2,
            out=str(tmp_path / "run"),
        )


def test_report_does_not_tell_the_password_of_the_storage(small: dict[str, Any]) -> None:
    request = make_request({**small, "storage": "postgresql://me:secret@host/name"})
    assembly = assemble(request, space=read_space("tiny"))
    assert "secret" not in str(assembly.info.to_dict())
    assert assembly.info.request["storage"] == "postgresql://me:***@host/name"
