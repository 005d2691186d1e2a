"""From a request to prepared data: layouts, labels, faults, notes, and the way to disk and back."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from autopeft.errors import DamagedRunError, SourceError
from autopeft.records import SCHEMA_VERSION
from autopeft.request_fields import make_request
from autopeft.trial.columns import find_layout
from autopeft.trial.data import prepare
from autopeft.trial.demo import demo_model
from autopeft.trial.prepared import fingerprint, read_prepared, write

SHARED = Path(__file__).parents[2] / "../shared/data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder ../shared/data is not here")


@pytest.fixture(scope="module")
def bert():
    return AutoTokenizer.from_pretrained(demo_model())


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def make(tmp_path, bert):
    """Prepare splits of rows: split -> rows."""

    def make(*, max_positions=512, tokenizer=bert, columns=None, task="auto", **splits):
        fields = {name: splits.pop(name) for name in list(splits) if not isinstance(splits[name], list | pd.DataFrame)}
        folder = tmp_path / f"data{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name, rows in splits.items():
            if isinstance(rows, pd.DataFrame):
                rows.to_parquet(folder / f"{name}.parquet")
            else:
                (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        request = make_request({"data": str(folder), "columns": columns or {}, **fields})
        return prepare(request, tokenizer, task=task, max_positions=max_positions)

    return make


CLASSES = [{"text": f"this is number {i}", "label": ("odd", "even")[i % 2]} for i in range(60)]
PAIRS = [{"prompt": f"what is {i}?", "completion": f"it is {i}"} for i in range(60)]


# --- columns ---


@pytest.mark.parametrize(
    ("found", "columns", "task", "roles"),
    [
        (["text", "label"], {}, "text-classification", {"text": "text", "label": "label"}),
        (["text"], {}, "causal-lm", {"text": "text"}),
        (
            ["idx", "sentence1", "sentence2", "label"],
            {},
            "text-classification",
            {"text": "sentence1", "label": "label", "text_pair": "sentence2"},
        ),
        (["sentence", "sentence2", "label"], {}, "text-classification", {"text": "sentence", "label": "label"}),
        (["question", "answer"], {}, "causal-lm", {"prompt": "question", "completion": "answer"}),
        (["prompt", "completion", "answer"], {}, "causal-lm", {"prompt": "prompt", "completion": "completion"}),
        (
            ["prompt", "completion", "answer"],
            {"completion": "answer"},
            "causal-lm",
            {"prompt": "prompt", "completion": "answer"},
        ),
        (
            ["instruction", "input", "output", "text"],
            {},
            "causal-lm",
            {"instruction": "instruction", "output": "output", "input": "input"},
        ),
        (["instruction", "response"], {}, "causal-lm", {"instruction": "instruction", "output": "response"}),
        (["messages", "prompt"], {}, "causal-lm", {"messages": "messages"}),
        (["body", "kind"], {"text": "body", "label": "kind"}, "text-classification", {"text": "body", "label": "kind"}),
        (["text", "label", "body"], {"text": "body"}, "text-classification", {"text": "body", "label": "label"}),
        (
            ["q", "a", "label", "text"],
            {"prompt": "q", "completion": "a"},
            "causal-lm",
            {"prompt": "q", "completion": "a"},
        ),
    ],
)
def test_columns_decide_task_and_roles(found, columns, task, roles):
    layout, used = find_layout(found, task="auto", columns=columns)
    assert (layout.task, used) == (task, roles)


@pytest.mark.parametrize(
    ("found", "task", "columns", "says"),
    [
        (["body", "kind"], "auto", {}, ["body, kind", "--column text=NAME --column label=NAME"]),
        (["body", "kind"], "causal-lm", {}, ["causal-lm", "prompt and completion", "--column messages=NAME"]),
        (["text", "label"], "auto", {"text": "body"}, ["text=body", "text, label"]),
        (["text", "label", "prompt", "completion"], "auto", {}, ["--task causal-lm", "--task text-classification"]),
        (
            ["text", "prompt"],
            "auto",
            {"text": "text", "prompt": "prompt"},
            ["text=text, prompt=prompt", "does not fit"],
        ),
    ],
)
def test_columns_that_do_not_fit_are_named_with_the_remedy(found, task, columns, says):
    with pytest.raises(SourceError) as error:
        find_layout(found, task=task, columns=columns)
    assert all(part in str(error.value) for part in says), error.value


def test_task_settles_what_fits_two_tasks():
    found = ["text", "label", "prompt", "completion"]
    assert find_layout(found, task="causal-lm", columns={})[1] == {"prompt": "prompt", "completion": "completion"}
    assert find_layout(found, task="text-classification", columns={})[1] == {"text": "text", "label": "label"}


# --- classification ---


def test_prepared_tokens_are_the_tokenizers(make, bert):
    prepared = make(train=CLASSES, validation=CLASSES[:7], test=CLASSES[:9], steps=2, batch_size=4)
    assert (prepared.train.num_rows, prepared.validation.num_rows, prepared.test.num_rows) == (8, 7, 9)
    assert prepared.rows_found == {"train": 60, "validation": 7, "test": 9}
    assert prepared.label_names == ("even", "odd")
    for row in prepared.train.to_pylist():
        found = CLASSES[row["row"] - 1]
        assert row["input_ids"] == bert(found["text"])["input_ids"]
        assert row["token_type_ids"] == [0] * len(row["input_ids"])
        assert prepared.label_names[row["label"]] == found["label"]


def test_pairs_are_told_apart_by_token_types(make, bert):
    rows = [{"premise": f"a {i}", "hypothesis": f"b {i}", "label": i % 2} for i in range(40)]
    prepared = make(train=rows)
    row = prepared.train.to_pylist()[0]
    found = rows[row["row"] - 1]
    assert row["token_type_ids"] == bert(found["premise"], found["hypothesis"])["token_type_ids"]
    assert 1 in row["token_type_ids"]


@pytest.mark.parametrize(
    ("labels", "texts", "names"),
    [
        ([10, 9, 2], None, ("2", "9", "10")),
        (["10", "9", "-1"], None, ("-1", "9", "10")),
        ([True, False, True], None, ("False", "True")),
        ([1.0, 0.0, 1.0], None, ("0", "1")),
        (["b", "a", "c"], None, ("a", "b", "c")),
        ([2, 1, 0], ["C", "B", "A"], ("A", "B", "C")),
        ([2, 1, 0], ["same", "same", "A"], ("0", "1", "2")),
    ],
)
def test_labels_are_numbered_in_their_own_order(make, labels, texts, names):
    rows = [
        {"text": f"text {i}", "label": labels[i % 3], **({"label_text": texts[i % 3]} if texts else {})}
        for i in range(60)
    ]
    prepared = make(train=rows)
    assert prepared.label_names == names


def test_class_label_names_and_order_are_honoured(tmp_path, bert):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "a", "m"])}
    )
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(40)]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "a.parquet")
    prepared = prepare(make_request({"data": str(tmp_path / "a.parquet")}), bert, max_positions=512)
    assert prepared.label_names == ("z", "a", "m")
    row = prepared.train.to_pylist()[0]
    assert row["label"] == rows[row["row"] - 1]["label"]


def test_test_split_without_labels_is_left_out_and_said(make):
    prepared = make(train=CLASSES, test=[{"text": "x", "label": None}, {"text": "y", "label": None}])
    assert prepared.test is None
    assert any("test split has no labels" in note for note in prepared.notes)
    with pytest.raises(SourceError, match="no test split"):
        prepared.split("test")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"text": "", "label": "odd"}, "data: train: row 61 has no text; fill or remove"),
        ({"text": "  ", "label": "odd"}, "row 61 has no text"),
        ({"text": None, "label": "odd"}, "row 61 has no text"),
        ({"label": "odd"}, "row 61 has no text"),
        ({"text": "x", "label": None}, "row 61 has no label"),
        ({"text": "x", "label": " "}, "row 61 has no label"),
    ],
)
def test_rows_that_miss_a_field_are_named(make, bad, says):
    with pytest.raises(SourceError, match=says):
        make(train=[*CLASSES, bad])


def test_many_faulty_rows_are_counted_and_the_first_are_named(make):
    rows = [{**row, "text": "" if i % 2 else "x", "label": None if i == 3 else "a"} for i, row in enumerate(CLASSES)]
    with pytest.raises(SourceError) as error:
        make(train=rows)
    assert "30 rows (2, 4, 6, 8, 10, ...) have no text" in str(error.value)
    assert "row 4 has no label" in str(error.value)


@pytest.mark.parametrize(
    ("train", "validation", "says"),
    [
        (CLASSES, [{"text": "x", "label": "prime"}], "validation: row 1 has a label that train never has: prime"),
        ([{"text": f"{i}", "label": "a"} for i in range(9)], CLASSES, "only the label 'a'"),
        ([{"text": f"{i}", "label": i + 0.5} for i in range(9)], CLASSES, "0.5 in column 'label' is no class"),
        ([{"text": f"{i}", "label": ["a"]} for i in range(9)], CLASSES, "is no class"),
        (CLASSES, [{"body": "x", "label": "odd"}], "validation split has no text; it has body, label"),
        ([{"text": "same", "label": "ab"[i % 2]} for i in range(9)], None, "1 distinct inputs, too few"),
    ],
)
def test_data_that_cannot_be_learned_is_refused(make, train, validation, says):
    with pytest.raises(SourceError, match=says.replace("(", r"\(")):
        make(train=train, **({"validation": validation} if validation else {}))


# --- what a search reads ---


def test_preparing_shuffled_rows_gives_the_same_tokens(make):
    first, again = make(train=CLASSES), make(train=random.Random(3).sample(CLASSES, 60))
    assert first.train.drop_columns("row") == again.train.drop_columns("row")
    assert first.validation.drop_columns("row") == again.validation.drop_columns("row")
    assert make(train=CLASSES, seed=1).train.drop_columns("row") != first.train.drop_columns("row")


def test_notes_say_what_was_made_and_changed(make):
    rows = [{"text": "word " * i, "label": i % 2, "more": 1} for i in range(1, 41)]
    prepared = make(train=rows, validation=rows[:3], max_positions=32)
    notes = " ".join(prepared.notes)
    assert prepared.max_length == 32
    assert max(len(row["input_ids"]) for row in prepared.train.to_pylist()) == 32
    for part in (
        "text-classification: text, label; not used: more",
        "no test split",
        "max_length 128 was reduced to 32",
        "3 of 3 validation rows have an input that train has too",
        "11 of 40 train rows have the full 32 tokens",
    ):
        assert part in notes
    assert "There is no validation split: 4 of the 40 train rows" in " ".join(make(train=rows).notes)


def test_the_tokenizers_own_limit_counts(make, bert):
    assert make(train=CLASSES, max_length=2000, max_positions=None).max_length == bert.model_max_length == 512


def test_prompts_that_leave_no_token_are_named(make):
    rows = [*PAIRS, {"prompt": "word " * 40, "completion": "x"}]
    with pytest.raises(SourceError, match=r"train: of the \d+ rows chosen, row 61 has no token .* --max-length"):
        make(train=rows, validation=PAIRS, max_length=32)
    with pytest.raises(SourceError, match="validation: row 2 has no completion"):
        make(train=PAIRS, validation=[PAIRS[0], {"prompt": "a", "completion": ""}])


# --- to disk and back ---


@pytest.mark.parametrize("rows", [CLASSES, PAIRS])
def test_what_was_written_is_read(make, tmp_path, rows):
    prepared = make(train=rows, test=rows[:5])
    write(prepared, tmp_path / "out" / "data")
    assert read_prepared(tmp_path / "out" / "data") == prepared
    assert json.loads((tmp_path / "out/data/data.json").read_text())["rows"]["test"] == 5


def test_fingerprint_is_of_the_tokens_however_chunked(make):
    prepared = make(train=CLASSES)
    chunked = pa.concat_tables([prepared.train.slice(0, 5), prepared.train.slice(5)])
    tables = {"train": chunked, "validation": prepared.validation}
    assert fingerprint(tables, prepared.label_names) == prepared.fingerprint
    assert fingerprint({**tables, "train": chunked.slice(1)}, prepared.label_names) != prepared.fingerprint


@pytest.mark.parametrize("damage", ["token", "missing", "torn", "card", "schema"])
def test_damaged_data_is_not_trusted(make, tmp_path, damage):
    prepared = make(train=CLASSES)
    write(prepared, tmp_path / "d")
    file, card = tmp_path / "d/train.parquet", tmp_path / "d/data.json"
    if damage == "token":
        ids = prepared.train["input_ids"].to_pylist()
        ids[3][1] += 1
        index = prepared.train.column_names.index("input_ids")
        pq.write_table(prepared.train.set_column(index, "input_ids", pa.array(ids, pa.list_(pa.int32()))), file)
    elif damage == "missing":
        file.unlink()
    elif damage == "torn":
        file.write_bytes(file.read_bytes()[:-20])
    elif damage == "schema":
        card.write_text(card.read_text().replace(f'"schema": {SCHEMA_VERSION}', '"schema": 99'))
    else:
        card.write_text("{")
    with pytest.raises(DamagedRunError) as error:
        read_prepared(tmp_path / "d")
    assert str(tmp_path / "d") in str(error.value)


@needs_shared
@pytest.mark.parametrize(("name", "classes", "train"), [("banking77", 77, 8992), ("trec", 6, 4869)])
def test_published_classes(bert, name, classes, train):
    request = make_request({"data": str(SHARED / name), "eval_rows": 100})
    prepared = prepare(request, bert, max_positions=512)
    assert (len(prepared.label_names), prepared.rows_found["train"]) == (classes, train)
    assert (prepared.train.num_rows, prepared.validation.num_rows, prepared.test.num_rows) == (800, 100, 200)
    frame = pd.read_parquet if name == "banking77" else lambda path: pd.read_json(path, lines=True)
    found = frame(next((SHARED / name).glob("train.*")))
    for row in prepared.train.slice(0, 50).to_pylist():
        assert prepared.label_names[row["label"]] == found["label_text"][row["row"] - 1]


def test_prepared_is_frozen(make):
    with pytest.raises(dataclasses.FrozenInstanceError):
        make(train=CLASSES).name = "x"
