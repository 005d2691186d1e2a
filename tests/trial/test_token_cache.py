"""Tokens that are read back are those that would be made; whatever decides them has an entry of its own."""

from __future__ import annotations

import os

import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from autopeft.request_fields import make_request
from autopeft.trial import data, token_cache
from autopeft.trial.data import prepare

ROWS = [f"{a} {b}" for a in "abcde" for b in "fghij"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "autopeft" / "tokens"


def make_tokenizer(*, letters="abcdefghij", **fields):
    words = {word: i for i, word in enumerate(["<pad>", "</s>", *letters])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", **fields)


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Prepare rows; gives the data, and how many splits were tokenised for it."""

    def prepared(rows=ROWS, tokenizer=None, **fields):
        files = tmp_path / "data"
        files.mkdir(exist_ok=True)
        (files / "train.csv").write_text("text\n" + "\n".join(rows))
        (files / "validation.csv").write_text("text\n" + "\n".join(rows[:5]))
        encoded = []
        real = data.encode_answers
        with monkeypatch.context() as patch:
            patch.setattr(data, "encode_answers", lambda *a, **k: encoded.append(1) or real(*a, **k))
            request = make_request({"data": str(files), "max_length": 16, **fields})
            found = prepare(request, tokenizer or make_tokenizer(), max_positions=None)
        return found, len(encoded)

    return prepared


def test_tokens_are_made_once_and_the_same(prepared, folder):
    (first, made), (second, made_again) = prepared(), prepared()
    assert (made, made_again) == (2, 0)
    assert second.fingerprint == first.fingerprint
    assert second.train.schema == first.train.schema
    assert len(list(folder.iterdir())) == 2
    assert folder.stat().st_mode & 0o077 == 0  # a user's data is nobody else's


@pytest.mark.parametrize(
    "change",
    [
        {"rows": [*ROWS[:-1], "a a"]},
        {"max_length": 8},
        {"seed": 1},
        {"tokenizer": make_tokenizer(letters="abcdefghji")},
        {"tokenizer": make_tokenizer(bos_token="a")},
        {"tokenizer": make_tokenizer(split_special_tokens=True)},
    ],
)
def test_another_text_length_order_or_tokenizer_is_tokenised_anew(change, prepared):
    prepared()
    found, made = prepared(**change)
    assert made >= 1
    again, none = prepared(**change)
    assert none == 0
    assert again.fingerprint == found.fingerprint


def test_a_template_that_writes_the_date_and_a_slow_tokenizer_are_not_kept(prepared, folder):
    prepared(tokenizer=make_tokenizer(chat_template="{{ strftime_now('%d') }}"))
    assert not folder.exists()
    assert (
        token_cache.tokens_of(lambda: "made", type("Slow", (), {"chat_template": None, "is_fast": False})()) == "made"
    )


@pytest.mark.parametrize("at", [0, 40, -200, -60, -5])  # the checksum, the pages, the footer
def test_a_damaged_entry_is_made_anew(at, prepared, folder):
    first, _ = prepared()
    for file in folder.iterdir():
        content = bytearray(file.read_bytes())
        content[at] ^= 1
        file.write_bytes(content)
    second, made = prepared()
    assert made == 2
    assert second.fingerprint == first.fingerprint
    assert prepared()[1] == 0


def test_other_code_makes_other_tokens(prepared, monkeypatch):
    prepared()
    monkeypatch.setattr(token_cache, "_code", lambda: "changed")
    assert prepared()[1] == 2


def test_an_entry_that_cannot_be_touched_is_read(prepared, monkeypatch):
    prepared()

    def refuse(*args, **kwargs):
        raise PermissionError

    monkeypatch.setattr(token_cache.os, "utime", refuse)
    assert prepared()[1] == 0


def test_where_nothing_can_be_written_nothing_is_kept(prepared, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert prepared()[1] == prepared()[1] == 2


def test_the_entries_stay_within_their_bound(folder, monkeypatch):
    tokenizer, table = make_tokenizer(), pa.table({"n": list(range(1000))})
    made = []

    def tokens(name):
        token_cache.tokens_of(lambda: made.append(name) or table, tokenizer, name)

    tokens("first")
    (entry,) = folder.iterdir()
    monkeypatch.setattr(token_cache, "LIMIT_BYTES", 3 * entry.stat().st_size)
    for age, name in enumerate(("second", "third")):
        tokens(name)
        for file in folder.iterdir():  # as if each were from another day
            os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 10 - age))
    tokens("first")  # used, and so the youngest
    tokens("fourth")
    assert len(list(folder.iterdir())) == 3
    made.clear()
    tokens("first")
    assert made == []
    tokens("second")
    assert made == ["second"]
    kept = set(folder.iterdir())
    token_cache.tokens_of(lambda: pa.table({"n": [str(n**5) for n in range(9999)]}), tokenizer, "larger than all")
    assert set(folder.iterdir()) == kept
