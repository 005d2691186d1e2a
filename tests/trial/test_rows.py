"""Reading files, folders and hub ids; which rows become validation and which are read."""

from __future__ import annotations

import gzip
import json
import random
import socket
from pathlib import Path

import datasets
import pandas as pd
import pytest

from autopeft.errors import SourceError
from autopeft.trial.columns import find_layout
from autopeft.trial.rows import read_source
from autopeft.trial.selection import choose_rows, split_off, survey_rows

ROWS = [{"text": f"row {i}", "label": ("yes", "no")[i % 2]} for i in range(40)]


@pytest.fixture(autouse=True)
def _own_cache_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def refuse(*args, **kwargs):
        raise AssertionError("a network connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def write_rows(path: Path, rows=ROWS) -> Path:
    path.parent.mkdir(exist_ok=True)
    frame, name = pd.DataFrame(rows), path.name.lower()
    if ".csv" in name or ".tsv" in name:
        frame.to_csv(path, index=False, sep="\t" if ".tsv" in name else ",")
    elif name.endswith(".parquet"):
        frame.to_parquet(path)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    else:
        text = "\n".join(json.dumps(row) for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize(
    "name",
    [
        "a.csv",
        "a.tsv",
        "a.csv.gz",
        "a.jsonl",
        "a.jsonl.gz",
        "a.json",
        "a.parquet",
        "A.CSV",
        "with space [1].csv",
        ".hidden/a.csv",
        "__a__/.b.csv",
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name):
    source = read_source(str(write_rows(tmp_path / name)))
    assert list(source.splits) == ["train"]
    assert list(source.splits["train"]) == ROWS


def test_a_csv_cell_stays_the_text_it_is(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\nNA,007\nnull,None\n"a, ""quoted""\nline",1.0\n')
    assert read_source(str(path)).splits["train"].to_list() == [
        {"text": "NA", "label": "007"},
        {"text": "null", "label": "None"},
        {"text": 'a, "quoted"\nline', "label": "1.0"},
    ]


@pytest.mark.parametrize("validation", ["validation", "valid", "dev", "val"])
def test_a_folder_of_splits_in_mixed_formats(tmp_path, validation):
    write_rows(tmp_path / "train.csv", ROWS[:20])
    write_rows(tmp_path / f"{validation}.jsonl", ROWS[20:30])
    write_rows(tmp_path / "test.parquet", ROWS[30:])
    (tmp_path / "README.md").write_text("not data")
    splits = read_source(str(tmp_path)).splits
    assert {name: split.to_list() for name, split in splits.items()} == {
        "train": ROWS[:20],
        "validation": ROWS[20:30],
        "test": ROWS[30:],
    }


def test_shards_of_a_split_belong_together(tmp_path):
    for i in range(2):
        write_rows(tmp_path / f"train-0000{i}-of-00002.parquet", ROWS[20 * i : 20 * i + 20])
    assert read_source(str(tmp_path)).splits["train"].to_list() == ROWS


def test_a_changed_file_is_read_anew(tmp_path):
    path = write_rows(tmp_path / "a.jsonl")
    assert len(read_source(str(path)).splits["train"]) == 40
    write_rows(path, ROWS[:10])
    assert len(read_source(str(path)).splits["train"]) == 10


def test_progress_bars_are_as_before(tmp_path):
    read_source(str(write_rows(tmp_path / "a.jsonl")))
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.parametrize(
    ("files", "data", "says"),
    [
        ({}, "none.csv", "none.csv does not exist; give a .csv"),
        ({}, "folder/none", "none does not exist"),
        ({"a.txt": "x"}, "a.txt", "no known format; give a .csv"),
        ({"README.md": "x"}, ".", "has no train file, it has no data files"),
        ({"test.csv": "text,label\na,b\n"}, ".", "has no train file, it has test.csv"),
        ({"train.csv": "text\na\n", "train.tsv": "text\na\n"}, ".", "several files for the train split: train.csv, tr"),
        ({"dev.csv": "text\na\n", "val.csv": "text\na\n"}, ".", "several files for the validation split"),
        ({"a.csv": "text,label\n"}, "a.csv", "no rows"),
        ({"a.csv": ""}, "a.csv", "cannot be read (EmptyDataError"),
        ({"a.csv": "text,label\na,b,c,d\ne,f,g,h,i\n"}, "a.csv", "cannot be read ("),
        ({"a.jsonl": '{"text": '}, "a.jsonl", "cannot be read ("),
        ({"a.parquet": "text"}, "a.parquet", "cannot be read ("),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, monkeypatch, files, data, says):
    (tmp_path / "folder").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SourceError) as error:
        read_source(str(tmp_path / data))
    assert says in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 4


@pytest.mark.parametrize("data", ["glue:sst2", "owner/data", "mydata"])
def test_a_hub_that_does_not_answer_is_one_line_with_the_cause(monkeypatch, data):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        SourceError, match=r"is no file or folder here, and the hub gave no data set .*Offline"
    ) as error:
        read_source(data)
    assert data in str(error.value)
    assert "\n" not in str(error.value)


def test_a_hub_id_carries_its_config_and_its_splits_are_renamed(monkeypatch):
    asked = []

    def load(*args):
        asked.append(args)
        split = datasets.Dataset.from_list(ROWS)
        return datasets.DatasetDict({"train": split, "dev": split, "other": split})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(read_source("owner/data:en.v1").splits) == ["train", "validation"]
    assert asked == [("owner/data", "en.v1")]


# --- which rows ---


def survey(rows):
    dataset = datasets.Dataset.from_list(rows)
    layout, columns = find_layout(dataset.column_names, task="auto", columns={})
    return survey_rows("train", dataset, layout, columns)


def shown(found):
    return [tuple(found.rows[i].values()) for i in found.positions]


def test_validation_split_ignores_order_and_never_shares_a_text():
    rows = [{"text": f"text {i % 150}", "label": str(i % 3)} for i in range(400)]
    shuffled = random.Random(0).sample(rows, len(rows))
    (train, validation), (train2, validation2) = split_off(survey(rows)), split_off(survey(shuffled))
    assert sorted(shown(train)) == sorted(shown(train2))
    assert sorted(shown(validation)) == sorted(shown(validation2))
    assert len(train) + len(validation) == 400
    texts = {text for text, _ in shown(validation)}
    assert len(texts) == 15
    assert not texts & {text for text, _ in shown(train)}


def test_validation_split_of_prompts_keeps_answers_to_one_prompt_together():
    rows = [{"prompt": f"prompt {i % 30}", "completion": f"answer {i}"} for i in range(90)]
    train, validation = split_off(survey(rows))
    assert not {p for p, _ in shown(validation)} & {p for p, _ in shown(train)}


def test_validation_split_leaves_train_every_label():
    rows = [{"text": f"text {i}", "label": f"only {i}" if i < 30 else "many"} for i in range(60)]
    train, validation = split_off(survey(rows))
    assert {label for _, label in shown(train)} == {row["label"] for row in rows}
    assert len(validation)


def test_chosen_rows_depend_on_content_and_seed_alone():
    rows = [{"text": f"text {i // 2}", "label": "ab"[i % 4 < 2]} for i in range(100)]
    shuffled = random.Random(1).sample(rows, len(rows))
    chosen = shown(choose_rows(survey(rows), 30, seed=5))
    assert chosen == shown(choose_rows(survey(shuffled), 30, seed=5))
    assert chosen != shown(choose_rows(survey(rows), 30, seed=6))
    assert shown(choose_rows(survey(rows), 10, seed=5)) == chosen[:10]
    assert sorted(shown(choose_rows(survey(rows), 1000, seed=5))) == sorted(tuple(row.values()) for row in rows)
