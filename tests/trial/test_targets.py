"""What an encoder-decoder reads and is trained to say: sources, targets, cuts, conversations, and what cannot be."""

from __future__ import annotations

import json

import datasets
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from autopeft.errors import SourceError
from autopeft.request_fields import make_request
from autopeft.trial.columns import LAYOUTS, find_layout
from autopeft.trial.data import prepare
from autopeft.trial.prepared import read_prepared, write
from autopeft.trial.targets import encode_targets

MESSAGES, PAIR, INSTRUCTION = (layout for layout in LAYOUTS if layout.task == "seq2seq-lm")
WORDS = ["<pad>", "</s>", "<s>", "<unk>", "what", "is", "it", "a", "plum", "and", "the", "user", "model", "0", "1"]
IDS = {word: i for i, word in enumerate(WORDS)}
CHAT = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}model{% endif %}"


def tokenizer(form: str = "$A </s>") -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [(token, IDS[token]) for token in ("<s>", "</s>")]
    words.post_processor = processors.TemplateProcessing(single=form, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", bos_token="<s>"
    )


def encode(row, layout, form="$A </s>", **options):
    settings = {"max_length": 32, "references": 1, **options}
    row = encode_targets([row], [7], tokenizer(form), layout=layout, **settings).to_pylist()[0]
    assert row.pop("row") == 7
    return row


def ids(text):
    return [IDS[word] for word in text.split()]


ASKED = {"prompt": "what is it", "completion": "a plum"}


@pytest.mark.parametrize(
    ("form", "source", "target"),
    [
        ("$A </s>", "what is it </s>", "a plum </s>"),  # as T5
        ("<s> $A </s>", "<s> what is it </s>", "<s> a plum </s>"),  # as BART
        ("$A", "what is it", "a plum </s>"),  # the end of a target is always trained
    ],
)
def test_each_side_has_the_tokens_that_the_tokenizer_gives_it(form, source, target):
    assert encode(ASKED, PAIR, form) == {
        "input_ids": ids(source), "labels": ids(target), "answer_bytes": 6, "reference": "a plum"
    }  # fmt: skip


def test_an_instruction_and_its_input_are_one_source():
    row = encode({"instruction": "what is", "input": "the plum", "output": "it"}, INSTRUCTION)
    assert row["input_ids"] == ids("what is the plum </s>")
    assert encode({"instruction": "what is", "input": "", "output": "it"}, INSTRUCTION)["input_ids"] == ids(
        "what is </s>"
    )


def test_a_cut_source_keeps_its_end_and_a_cut_target_loses_it():
    row = encode({"prompt": "what is it and it and it", "completion": "a plum and a plum"}, PAIR, max_length=4)
    assert row["input_ids"] == ids("what is it </s>")
    assert row["labels"] == ids("a plum and a")
    assert row["answer_bytes"] == len("a plum and a")
    assert row["reference"] == "a plum and a plum"


def test_the_reference_is_the_text_as_it_is_written():
    """An unknown word is never generated, and must not be forgiven."""
    row = encode({"prompt": "it", "completion": "a   mirabelle"}, PAIR)
    assert row["labels"] == ids("a <unk> </s>")
    assert row["reference"] == "a   mirabelle"


def test_of_a_conversation_the_last_turn_is_the_target():
    form = tokenizer()
    form.chat_template = CHAT
    said = [{"role": r, "content": c} for r, c in (("user", "it"), ("model", "a"), ("user", "is it"))]
    turns = [{**turn, "role": turn["role"].replace("model", "assistant")} for turn in said]
    rows = [{"messages": [*turns, {"role": "assistant", "content": "a plum"}, {"role": "user", "content": "and"}]}]
    row = encode_targets(rows, [1], form, layout=MESSAGES, max_length=32).to_pylist()[0]
    assert row["input_ids"] == ids("user it <unk> a user is it model")
    assert row["labels"] == ids("a plum </s>")
    assert "reference" not in row
    rows[0]["messages"][3]["content"] = " "
    with pytest.raises(SourceError, match="row 1: the last turn of the assistant is empty"):
        encode_targets(rows, [1], form, layout=MESSAGES, max_length=32)
    with pytest.raises(SourceError, match="no chat template"):
        encode(rows[0], MESSAGES)


# --- columns ---


@pytest.mark.parametrize(
    ("found", "task"),
    [
        (["prompt", "completion"], "seq2seq-lm"),
        (["source", "target"], "seq2seq-lm"),
        (["instruction", "input", "output"], "seq2seq-lm"),
        (["messages"], "seq2seq-lm"),
        (["text", "label"], "text-classification"),
    ],
)
def test_with_an_encoder_decoder_answers_are_for_it(found, task):
    assert find_layout(found, task="auto", columns={}, answering="seq2seq-lm")[0].task == task


def test_a_text_alone_has_no_target():
    for task in ("auto", "seq2seq-lm"):
        with pytest.raises(SourceError, match=r"A text alone has no target .* --column"):
            find_layout(["text"], task=task, columns={}, answering="seq2seq-lm")
    with pytest.raises(SourceError, match=r"choose --task seq2seq-lm .* or --task text-classification"):
        find_layout(["text", "label", "prompt", "answer"], task="auto", columns={}, answering="seq2seq-lm")


# --- from a request ---


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def make(rows, held_out=None, **fields):
        folder = tmp_path / f"data{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name, some in {"train": rows, "validation": held_out, "test": held_out}.items():
            if some is not None:
                (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
        answering = fields.pop("answering", "seq2seq-lm")
        request = make_request({"data": str(folder), **fields})
        return prepare(request, tokenizer(), task=request.task, answering=answering, max_positions=None)

    return make


def binary(i):
    return " ".join(format(i, "06b"))


ROWS = [{"prompt": f"what is {binary(i)}", "completion": f"it is {binary(i)}"} for i in range(60)]


@pytest.mark.parametrize(("answering", "task"), [("seq2seq-lm", "seq2seq-lm"), ("causal-lm", "causal-lm")])
def test_the_model_decides_what_answers_are_for(make, answering, task):
    prepared = make(ROWS, answering=answering)
    assert prepared.task == task
    assert prepared.train.column_names == ["row", "input_ids", "labels", "answer_bytes"]
    assert prepared.closing == (task == "seq2seq-lm")


@pytest.mark.parametrize("answering", ["seq2seq-lm", "causal-lm"])
def test_references_are_kept_of_the_rows_to_generate_for(make, tmp_path, answering):
    prepared = make(ROWS, ROWS[:9], metric="rouge_l", generate_rows=5, answering=answering)
    assert "reference" not in prepared.train.column_names
    for table in (prepared.validation, prepared.test):
        texts = [ROWS[row["row"] - 1]["completion"] for row in table.to_pylist()]
        assert table["reference"].to_pylist() == [*texts[:5], *[None] * 4]
    assert "rouge_l is of the text generated greedily for 5 of 9 validation rows and 5 of 9 test rows" in " ".join(
        prepared.notes
    )
    write(prepared, tmp_path / "written")
    assert read_prepared(tmp_path / "written") == prepared


def test_another_reference_is_other_data(make):
    spaced = [{**ROWS[0], "completion": ROWS[0]["completion"].replace(" ", "  ")}]
    one, other = make(ROWS, ROWS[:1], metric="bleu"), make(ROWS, spaced, metric="bleu")
    assert one.validation["labels"] == other.validation["labels"]
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint == make(ROWS, ROWS[:1], metric="bleu").fingerprint


def test_cuts_of_both_sides_are_said(make):
    notes = " ".join(make(ROWS, ROWS[:9], max_length=8).notes)
    assert "60 of 60 train rows, 9 of 9 validation rows, 9 of 9 test rows have the full 8 tokens of source" in notes
    assert "60 of 60 train rows, 9 of 9 validation rows, 9 of 9 test rows have the full 8 tokens of target" in notes
    assert "full" not in " ".join(make(ROWS, ROWS[:9], max_length=12).notes)


def test_an_empty_target_is_named(make):
    with pytest.raises(SourceError, match="train: row 61 has no completion; fill or remove"):
        make([*ROWS, {"prompt": "it", "completion": " "}])


def test_a_metric_of_answers_needs_prompts(make):
    texts = [{"text": row["prompt"]} for row in ROWS]
    with pytest.raises(SourceError, match=r"metric: bleu judges answers, .* choose one of loss, perplexity"):
        make(texts, answering="causal-lm", metric="bleu")


def test_a_last_answer_that_is_cut_off_is_not_judged():
    from autopeft.trial.tokens import Encoded, _last_answer

    row = Encoded([7, 8, 4, 7, 8, 5, 1], [False, False, True, False, False, True, True], None)
    assert _last_answer(row, tokenizer(), 7) == "is"
    assert _last_answer(row, tokenizer(), 6) == "is"
    assert _last_answer(row, tokenizer(), 5) is None
