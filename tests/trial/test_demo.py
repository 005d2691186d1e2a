"""The embedded default: its model is real, its data is clean, quick and gives nothing away."""

from __future__ import annotations

import sys
import time
from collections import Counter

import pytest
from transformers import AutoConfig, AutoTokenizer

from autopeft.errors import SourceError
from autopeft.request_fields import make_request
from autopeft.trial import demo
from autopeft.trial.data import prepare


@pytest.fixture(scope="module")
def rows():
    start = time.process_time()
    splits = demo.read_docstrings().splits
    assert time.process_time() - start < 20  # 4 s on an idle core
    return {name: list(split) for name, split in splits.items()}


def everything(rows):
    return [row for split in rows.values() for row in split]


def test_model_is_the_encoder():
    config = AutoConfig.from_pretrained(demo.demo_model())
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("bert", 6, 384)


def test_a_missing_model_says_what_to_install(monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match=r'pip install "autopeft\[demo\]"'):
        demo.demo_model()
    with pytest.raises(SourceError, match="needs datasets, which is not installed"):
        demo.read_docstrings()


def test_ten_classes_of_many_rows(rows):
    count = Counter(row["label"] for row in everything(rows))
    assert set(count) == set(demo.LIBRARIES)
    assert min(count.values()) > 200
    assert max(count.values()) == 600
    assert len(rows["train"]) > 5 * len(rows["validation"]) > 1000
    assert abs(len(rows["test"]) - len(rows["validation"])) < 150


def test_no_text_twice(rows):
    texts = [row["text"] for row in everything(rows)]
    assert len(set(texts)) == len(texts)


def test_texts_are_short_single_spaced_and_name_no_library(rows):
    for row in everything(rows):
        text = row["text"]
        assert len(text) <= 240
        assert text == " ".join(text.split())
        lower = text.lower()
        for name in (*demo.LIBRARIES, "scikit-learn", "scikit learn", "huggingface", "hugging face", "np.", "pd."):
            if name in ("ray", "np.", "pd."):
                words = lower.replace(".", ". ").replace("`", " ").replace("(", " ").split()
                assert name not in words, text
            else:
                assert name not in lower.removesuffix(lower.split()[-1]), text  # the last word may be cut


def test_the_same_rows_again(rows):
    again = demo.read_docstrings(40)
    assert all(len(split) for split in again.splits.values())
    assert [row for split in demo.read_docstrings(40).splits.values() for row in split] == [
        row for split in again.splits.values() for row in split
    ]


def test_no_library_is_imported_to_be_read():
    before = set(sys.modules)
    demo.read_docstrings(5)
    assert not {name for name in set(sys.modules) - before if name.split(".")[0] in demo.LIBRARIES}


def test_the_default_request_is_prepared():
    tokenizer = AutoTokenizer.from_pretrained(demo.demo_model())
    prepared = prepare(make_request({}), tokenizer, task="auto", max_positions=512)
    assert prepared.task == "text-classification"
    assert prepared.label_names == demo.LIBRARIES
    assert (prepared.train.num_rows, prepared.validation.num_rows) == (800, 500)
