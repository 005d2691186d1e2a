"""Input through the command line: every file format, chats, and published data where it is at hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fruits import SHARED, SMALL, Ended, fruit_rows, options, write_jsonl

import autopeft as ap

Cli = Callable[..., Ended]

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not at hand: it belongs in {SHARED}")
    return folder


def _write(rows: Sequence[dict[str, str]], folder: Path, form: str) -> Path:
    frame = pd.DataFrame(rows)
    match form:
        case "csv":
            frame.to_csv(folder / "fruits.csv", index=False)
        case "tsv":
            frame.to_csv(folder / "fruits.tsv", index=False, sep="\t")
        case "parquet":
            frame.to_parquet(folder / "fruits.parquet")
        case "jsonl":
            write_jsonl(rows, folder / "fruits.jsonl")
        case "splits":
            (folder / "fruits.d").mkdir()
            frame[:42].to_csv(folder / "fruits.d" / "train.csv", index=False)
            frame[42:51].to_csv(folder / "fruits.d" / "dev.csv", index=False)
            frame[51:].to_csv(folder / "fruits.d" / "test.csv", index=False)
    return next(folder.glob("fruits.*"))


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet", "splits"])
def test_labelled_texts_are_read_from(cli: Cli, small: dict[str, Any], tmp_path: Path, form: str) -> None:
    data = _write(fruit_rows(60), tmp_path, form)
    ended = cli("search", *options({**small, "data": data, "trials": 1}), "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    info = ap.Result(tmp_path / "run").info
    assert info.data["label_names"] == ["apple", "lemon", "plum"]
    assert ("There is no validation split" in ended.err) == (form != "splits")
    if form == "splits":
        assert info.data["rows_found"] == {"train": 42, "validation": 9, "test": 9}


def test_columns_of_any_name_are_read_when_named(cli: Cli, small: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"Satz": row["text"], "Frucht": row["label"]} for row in fruit_rows(60)]
    data = write_jsonl(rows, tmp_path / "obst.jsonl")
    columns = ["--column", "text=Satz", "--column", "label=Frucht"]
    ended = cli("search", *options({**small, "data": data, "trials": 1}), *columns, "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert "text from Satz, label from Frucht" in ended.err


def test_pairs_of_sentences_are_read(cli: Cli, small: dict[str, Any], tmp_path: Path) -> None:
    rows = [
        {"sentence1": row["text"], "sentence2": f"it is a {row['label']}", "label": number % 2}
        for number, row in enumerate(fruit_rows(60))
    ]
    data = write_jsonl(rows, tmp_path / "pairs.jsonl")
    ended = cli("search", *options({**small, "data": data, "trials": 1}), "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert "text_pair from sentence2" in ended.err


def _answers(form: str) -> list[dict[str, Any]]:
    asked, rows = "what is it ?", list[dict[str, Any]]()
    for row in fruit_rows(60):
        said = f"it is a {row['label']}"
        rows.append(
            {
                "text": {"text": f"{row['text']} : {said}"},
                "prompt": {"prompt": row["text"], "completion": said},
                "instruction": {"instruction": asked, "input": row["text"], "output": said},
                "messages": {
                    "messages": [
                        {"role": "user", "content": row["text"]},
                        {"role": "assistant", "content": said},
                    ]
                },
            }[form]
        )
    return rows


def _with_chat_template(folder: Path, copy: Path) -> Path:
    model = Path(shutil.copytree(folder, copy))
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": CHAT_TEMPLATE}))
    return model


@pytest.mark.parametrize("form", ["text", "prompt", "instruction", "messages"])
def test_answers_are_learned_from(cli: Cli, llama_folder: Path, tmp_path: Path, form: str) -> None:
    model = _with_chat_template(llama_folder, tmp_path / "model")
    data = write_jsonl(_answers(form), tmp_path / "answers.jsonl")
    fields = {**SMALL, "model": model, "data": data, "max_length": 32, "trials": 1}
    ended = cli("search", *options(fields), "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert "read as causal-lm" in ended.err
    measured = ap.Result(tmp_path / "run").records[0].measurement
    assert measured is not None
    assert {"loss", "perplexity", "bits_per_byte", "token_accuracy"} <= set(measured.metrics)


@pytest.mark.parametrize("form", ["prompt", "instruction", "messages"])
def test_an_encoder_decoder_learns_targets_of(cli: Cli, t5_folder: Path, tmp_path: Path, form: str) -> None:
    model = _with_chat_template(t5_folder, tmp_path / "model")
    data = write_jsonl(_answers(form), tmp_path / "answers.jsonl")
    fields = {**SMALL, "model": model, "data": data, "max_length": 32, "trials": 4, "space": "default"}
    ended = cli("search", *options(fields), "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert "read as seq2seq-lm" in ended.err
    result = ap.Result(tmp_path / "run")
    assert result.info.objectives[0]["unit"] == "nats"
    for record in result.records:
        assert record.measurement is not None
        assert set(record.measurement.metrics) == {"loss", "perplexity", "bits_per_byte", "token_accuracy"}
    loaded = result.best().load()
    assert type(loaded.get_base_model()).__name__ == "T5ForConditionalGeneration"


@pytest.mark.parametrize("folder", ["t5_folder", "llama_folder"])
def test_generated_text_is_judged_when_asked_for(
    cli: Cli, folder: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    data = write_jsonl(_answers("prompt"), tmp_path / "answers.jsonl")
    fields = {
        **SMALL, "model": request.getfixturevalue(folder), "data": data, "max_length": 32, "trials": 2,
        "metric": "rouge_l", "generate_rows": 4,
    }  # fmt: skip
    ended = cli("search", *options(fields), "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert "generated greedily for 4 of 6 validation rows" in ended.err
    for record in ap.Result(tmp_path / "run").records:
        assert record.measurement is not None
        assert record.measurement.quality == record.measurement.metrics["rouge_l"] >= 0
        assert {"loss", "exact_match", "bleu", "chrf"} <= set(record.measurement.metrics)


@pytest.mark.parametrize(
    ("folder", "form", "given", "code", "says"),
    [
        ("t5_folder", "text", [], 4, "A text alone has no target for an encoder-decoder"),
        ("t5_folder", "prompt", ["--task", "causal-lm"], 4, "no causal-lm form of; it has"),
        ("t5_folder", "prompt", ["--metric", "accuracy"], 2, "'accuracy' is not for seq2seq-lm; choose one of loss"),
        ("t5_folder", "prompt", ["--task", "text-classification"], 4, "needed are text and label"),
        ("llama_folder", "prompt", ["--task", "seq2seq-lm"], 4, "no seq2seq-lm form of; it has text-classification"),
        ("llama_folder", "text", ["--metric", "bleu"], 4, "a text alone has no prompt to answer"),
        ("t5_folder", "messages", [], 4, "no chat template"),
        ("t5_folder", "prompt", ["--generate-rows", "0"], 2, "generate_rows"),
    ],
)
def test_what_a_model_cannot_answer_is_refused(
    cli: Cli,
    folder: str,
    form: str,
    given: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    data = write_jsonl(_answers(form), tmp_path / "answers.jsonl")
    fields = {**SMALL, "model": request.getfixturevalue(folder), "data": data}
    ended = cli("search", *options(fields), *given, "--out", tmp_path / "run")
    assert ended.code == code, ended.err
    assert says in " ".join(ended.err.split())


def test_an_encoder_decoder_still_classifies(cli: Cli, small: dict[str, Any], t5_folder: Path, tmp_path: Path) -> None:
    rows = [{**row, "text": f"{row['text']} </s>"} for row in fruit_rows(60)]
    data = write_jsonl(rows, tmp_path / "fruits.jsonl")
    fields = {**small, "model": t5_folder, "data": data, "trials": 1}
    ended = cli("search", *options(fields), "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert "read as text-classification" in ended.err
    ended = cli("search", *options(fields), "--metric", "rouge_l", "--out", tmp_path / "other")
    assert ended.code == 2
    assert "'rouge_l' is not for text-classification" in ended.err


def test_messages_without_a_chat_template_are_refused(cli: Cli, llama_folder: Path, tmp_path: Path) -> None:
    talks = [
        [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}]
        for row in fruit_rows(60)
    ]
    data = write_jsonl([{"messages": talk} for talk in talks], tmp_path / "chat.jsonl")
    ended = cli("search", *options({**SMALL, "model": llama_folder, "data": data}), "--out", tmp_path / "run")
    assert ended.code == 4
    assert "chat template" in ended.err


def test_row_with_nothing_to_train_on_is_named(cli: Cli, llama_folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": row["text"], "completion": row["label"]} for row in fruit_rows(60)]
    rows[7] = {"prompt": "the fruit " * 40, "completion": "lemon"}
    data = write_jsonl(rows, tmp_path / "answers.jsonl")
    fields = {**SMALL, "model": llama_folder, "data": data, "steps": 20}
    ended = cli("search", *options(fields), "--out", tmp_path / "run")
    assert ended.code == 4
    assert "row 8" in ended.err
    assert "no token to train on" in ended.err


# --- published models and data ---------------------------------------------------------------------------------------


def test_llama_learns_to_describe_restaurants(cli: Cli, tmp_path: Path) -> None:
    fields = {
        **SMALL, "model": shared("stories260k-llama-hf"), "data": shared("e2e_nlg"), "task": "causal-lm",
        "metric": "bits_per_byte", "max_length": 160, "space": "default", "trials": 5, "eval_rows": 16,
    }  # fmt: skip
    columns = ["--column", "prompt=source", "--column", "completion=target"]
    ended = cli("search", *options(fields), *columns, "--out", tmp_path / "run", "--json")
    assert ended.code == 0, ended.err
    result = ap.Result(tmp_path / "run")
    assert result.info.objectives[0]["goal"] == "minimize"
    assert len({r.plan.method for r in result.records if r.plan}) >= 3
    assert result.front["quality"].is_monotonic_increasing
    assert result.best().load() is not None


def test_llama_learns_a_chat_by_a_template(cli: Cli, tmp_path: Path) -> None:
    model = Path(shutil.copytree(shared("stories260k-llama-hf"), tmp_path / "model"))
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").chmod(0o644)
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": CHAT_TEMPLATE}))
    lines = (shared("e2e_nlg") / "train.jsonl").read_text().splitlines()[:60]
    rows = [
        {
            "messages": [
                {"role": "user", "content": row["source"]},
                {"role": "assistant", "content": row["target"]},
            ]
        }
        for row in map(json.loads, lines)
    ]
    data = write_jsonl(rows, tmp_path / "chat.jsonl")
    fields = {**SMALL, "model": model, "data": data, "max_length": 200, "trials": 2}
    ended = cli("search", *options(fields), "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert "the turns of the assistant" in ended.err


def test_minilm_learns_intents(cli: Cli, tmp_path: Path) -> None:
    from autopeft.trial.demo import demo_model

    data = shared("banking77")
    fields = {**SMALL, "model": demo_model(), "data": data, "budget": "2%", "trials": 3, "max_length": 32}
    columns = ["--column", "text=text", "--column", "label=label"]
    ended = cli("search", *options(fields), *columns, "--out", tmp_path / "run", "--json")
    assert ended.code == 0, ended.err
    result = ap.Result(tmp_path / "run")
    assert len(result.info.data["label_names"]) == 77
    assert max(r.values["params"] for r in result.records) <= 0.02 * result.info.anatomy["base_params"]  # type: ignore[index]
