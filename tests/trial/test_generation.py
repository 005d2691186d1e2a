"""Generated texts: greedy against a search by hand, bounds, and scores against published implementations."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
from families import PAIRS, TOKENS
from hypothesis import given
from hypothesis import strategies as st
from small_run import make_unit, pretrained
from transformers import GenerationConfig

from autopeft.candidates import BaseFormat, Candidate
from autopeft.methods import METHODS
from autopeft.plans import unfit
from autopeft.trial.adapters import Resident
from autopeft.trial.evaluate import evaluate
from autopeft.trial.generation import _longest_common, compare, generate, rouge_l
from autopeft.trial.model import load_base
from autopeft.trial.prepared import Prepared, fingerprint
from autopeft.trial.reading import read_anatomy

TEXTS = [pair for pair in PAIRS if pair[1] != "text-classification"]
PROMPTS = ("prefix_tuning", "prompt_tuning", "p_tuning", "layer_prefix", "adaption_prompt", "cartridge")
"""Methods that add to what attention remembers, each family in its own way; the others are tried on two families."""
STOP = 1
AWAY = {"unilora": 3.0, "peanut": 0.01, "adalora": 0.5}
"""How far these are moved from their start, and all others by 0.1: as far as changes what is said and does not make it
the same for all."""


class Numbers:
    """A tokenizer whose texts are the numbers of the tokens."""

    eos_token_id = STOP

    def batch_decode(self, rows, skip_special_tokens):
        assert skip_special_tokens
        return [" ".join(str(int(i)) for i in row if i > 2) for row in rows]


def make_prepared(task, *, references=None, max_length=40):
    generator = torch.Generator().manual_seed(0)
    columns = {"row": [], "input_ids": [], "labels": [], "answer_bytes": [], "reference": []}
    for i, (asked, said) in enumerate([(3, 5), (9, 2), (3, 7), (6, 3), (12, 4)]):
        prompt = torch.randint(3, 128, (asked,), generator=generator).tolist()
        answer = [*torch.randint(3, 128, (said - 1,), generator=generator).tolist(), STOP]
        columns["row"].append(i + 1)
        columns["input_ids"].append(prompt + answer if task == "causal-lm" else prompt)
        columns["labels"].append([-100] * asked + answer if task == "causal-lm" else answer)
        columns["answer_bytes"].append(said)
        columns["reference"].append(" ".join(map(str, answer[:-1])) if references is None or i in references else None)
    table = pa.table(columns)
    tables = {"train": table.drop_columns("reference"), "validation": table}
    return Prepared("x", task, tables["train"], table, None, (), 0, max_length, {}, (), fingerprint(tables, ()))


def by_hand(model, prepared, row, most, stops):
    """Say the likeliest token again and again, each time reading everything from the beginning."""
    first = next((i for i, label in enumerate(row["labels"]) if label != -100), 0)
    asked = torch.tensor([row["input_ids"][:first] if prepared.task == "causal-lm" else row["input_ids"]])
    mask, said = torch.ones_like(asked), []
    start = getattr(model.config, "decoder_start_token_id", None)
    for _ in range(most):
        if prepared.task == "causal-lm":
            ids = torch.cat((asked, torch.tensor([said], dtype=torch.long)), 1)
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        else:
            logits = model(
                input_ids=asked, attention_mask=mask, decoder_input_ids=torch.tensor([[start, *said]])
            ).logits
        said.append(int(logits[0, -1].argmax()))
        if said[-1] in stops:
            break
    return " ".join(str(i) for i in said if i > 2)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    found = {}

    def base(family, task):
        if family not in found:
            source = pretrained(family, task, tmp_path_factory.mktemp(family))
            model, anatomy = load_base(source, BaseFormat(32), device="cpu"), read_anatomy(source).on_data(TOKENS)
            for linear in anatomy.linears:  # else a random model says the last token again and again
                model.get_submodule(linear.name).weight.data *= 8
            found[family] = (Resident(model), anatomy)
        return found[family]

    return base


@pytest.mark.parametrize(
    ("family", "task", "method"),
    [(*pair, name) for pair in TEXTS for name in METHODS if name in PROMPTS or pair[0] in ("llama", "t5")],
)
def test_generation_is_the_likeliest_token_each_time(family, task, method, bases):
    resident, anatomy = bases(family, task)
    values = {"method": method, "bits": 32, **({"shira.rank": 2} if method == "shira" else {})}
    if reason := unfit(Candidate(values), anatomy):
        pytest.skip(reason)
    own = resident.model.generation_config
    stops = {STOP, own.eos_token_id}
    # What a checkpoint prefers is put away: it would say other texts.
    resident.model.generation_config = GenerationConfig(
        **{**own.to_diff_dict(), "min_length": 9, "no_repeat_ngram_size": 1, "do_sample": True, "top_k": 3}
    )
    prepared = make_prepared(task)
    torch.manual_seed(0)
    untrained = generate(
        resident.model, prepared.validation, prepared, tokenizer=Numbers(), batch_size=64, device="cpu"
    )
    try:
        adapted = resident.attach(make_unit(anatomy, values).plan, task=task, head={})
        generator = torch.Generator().manual_seed(1)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += AWAY.get(method, 0.1) * torch.randn(parameter.shape, generator=generator)
        adapted.eval()
        rows = prepared.validation.to_pylist()
        with torch.inference_mode():
            expected = [by_hand(adapted, prepared, row, 7, stops) for row in rows]
            for size in (2, 1):  # with padding, and without
                said = generate(
                    adapted, prepared.validation, prepared, tokenizer=Numbers(), batch_size=size, device="cpu"
                )
                assert said == expected
        assert said != untrained
        assert len(set(said)) > 1
        assert any(len(set(text.split())) > 1 for text in said)
    finally:
        resident.detach()
        changed, resident.model.generation_config = resident.model.generation_config, own
    assert changed.min_length == 9


def test_a_row_of_a_causal_model_never_gets_longer_than_the_rest(bases):
    """GPT-2 has a fixed number of positions: one more token would be an error."""
    resident, _ = bases("gpt2", "causal-lm")
    prepared = make_prepared("causal-lm", max_length=16)
    assert resident.model.config.n_positions == 64
    said = generate(resident.model, prepared.validation, prepared, tokenizer=Numbers(), batch_size=1, device="cpu")
    lengths = [len(text.split()) for text in said]
    assert max(lengths) <= 7
    assert lengths[4] <= 16 - 12


@pytest.mark.parametrize("task", ["causal-lm", "seq2seq-lm"])
def test_only_rows_with_a_reference_are_judged(task, bases):
    family = "llama" if task == "causal-lm" else "t5"
    resident, _ = bases(family, task)
    some, all_ = make_prepared(task, references=(1, 3)), make_prepared(task)
    seen = []
    tokenizer = SimpleNamespace(
        eos_token_id=STOP, batch_decode=lambda rows, **_: [seen.append(1) or "x" for _ in range(len(rows))]
    )
    metrics = evaluate(resident.model, some, "validation", tokenizer=tokenizer)
    assert len(seen) == 2
    whole = evaluate(resident.model, all_, "validation", tokenizer=tokenizer)
    assert len(seen) == 2 + 5
    assert metrics["loss"] == whole["loss"]
    assert {"exact_match", "rouge_l", "bleu", "chrf"} <= metrics.keys()
    assert "exact_match" not in evaluate(resident.model, some, "train")


# --- scores ---


@pytest.mark.parametrize(
    ("said", "meant", "f1"),
    # rouge-score 0.1.2, rougeL, use_stemmer=False
    [
        ("the cat sat on the mat", "the cat lay on a mat", 2 / 3),
        ("The cat, sat!", "the cat sat", 1.0),
        ("", "a b", 0.0),
        ("a b c d e f", "f e d c b a", 1 / 6),
        ("There is a cheap pub near the river, called Alimentum.", "Alimentum is a cheap pub by the river.", 2 / 3),
    ],
)
def test_rouge_is_that_of_the_package(said, meant, f1):
    assert rouge_l(said, meant) == pytest.approx(f1)


def test_rouge_reads_any_script():
    assert rouge_l("Катя идёт домой", "катя ИДЁТ в школу") == pytest.approx(4 / 7)


WORDS = st.lists(st.sampled_from("abcd"), max_size=8)


@given(WORDS, WORDS)
def test_longest_common_subsequence_is_that_of_a_search_through_all(one, other):
    def parts(words):
        return {part for n in range(len(words) + 1) for part in combinations(words, n)}

    assert _longest_common(one, other) == max(map(len, parts(one) & parts(other)))


def test_scores_of_texts():
    meant = ["the cat sat on the mat .", "it is a plum", "no"]
    assert compare(meant, [f" {text}\n".replace("is a", "is\n a") for text in meant]) == pytest.approx(
        {"exact_match": 1.0, "rouge_l": 1.0, "bleu": 100.0, "chrf": 100.0}
    )
    nothing = compare(["", "", ""], meant)
    assert nothing == {"exact_match": 0.0, "rouge_l": 0.0, "bleu": 0.0, "chrf": 0.0}
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours; as long as the reference
    near = compare(["the cat sat on a mat"], ["the cat sat on the mat"])
    assert near["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert near["exact_match"] == 0
