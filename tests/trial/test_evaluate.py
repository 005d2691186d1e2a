"""Metrics against hand counts, and against what transformers and PEFT compute themselves."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pytest
import torch
from families import make_model
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from small_run import make_data
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from autopeft.objectives import METRICS
from autopeft.request_fields import make_request
from autopeft.trial import evaluate as evaluate_module
from autopeft.trial.batches import collate
from autopeft.trial.data import prepare
from autopeft.trial.demo import demo_model
from autopeft.trial.evaluate import evaluate
from autopeft.trial.prepared import Prepared

SHARED = Path(__file__).parents[2] / "../shared/data"
MODEL = SHARED / "stories260k-llama-hf"
needs_shared = pytest.mark.skipif(not MODEL.is_dir(), reason="the folder ../shared/data is not here")

torch.set_num_threads(1)


def make_prepared(task, columns) -> Prepared:
    table = pa.table(columns)
    return Prepared("x", task, table, table, None, (), 0, 128, {}, (), "")


class Fixed(nn.Module):
    """Gives fixed logits for a token: the row `logits[token]`; `at` says which tokens are looked at."""

    def __init__(self, logits, per_row=False, virtual=0):
        super().__init__()
        self.table, self.per_row, self.virtual = torch.tensor(logits), per_row, virtual

    def forward(self, input_ids, attention_mask):
        logits = self.table[input_ids[:, 0] if self.per_row else input_ids]
        if self.virtual:
            logits = torch.cat((torch.full((len(logits), self.virtual, logits.shape[-1]), 1e4), logits), 1)
        return SimpleNamespace(logits=logits)


def test_classification_counted_by_hand():
    # truth a a a b b c, said a a b b b a
    prepared = make_prepared(
        "text-classification",
        {"row": range(6), "input_ids": [[i] for i in range(6)], "label": [0, 0, 0, 1, 1, 2]},
    )
    said = [0, 0, 1, 1, 1, 0]
    model = Fixed([[4.0 if k == s else 0.0 for k in range(3)] for s in said], per_row=True)
    metrics = evaluate(model, prepared, "validation", batch_size=4)
    right, wrong = math.log(1 + 2 * math.exp(-4)), math.log(math.exp(4) + 2)
    assert metrics == pytest.approx(
        {
            "accuracy": 4 / 6,
            "f1_macro": (2 * 2 / (3 + 3) + 2 * 2 / (3 + 2) + 0) / 3,
            # Gorodkin's R_K of the confusion matrix [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
            "matthews": (4 * 6 - (3 * 3 + 2 * 3 + 1 * 0)) / math.sqrt((36 - 9 - 9 - 0) * (36 - 9 - 4 - 1)),
            "loss": (4 * right + 2 * wrong) / 6,
        },
        rel=1e-5,
    )
    assert set(metrics) == {m.name for m in METRICS.values() if "text-classification" in m.tasks}


@pytest.mark.parametrize("virtual", [0, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_language_model_counted_by_hand(virtual, batch_size):
    # After token t the model says t + 1 with probability 1/2, every other of 4 with 1/6.
    logits = [[math.log(0.5) if k == (t + 1) % 4 else math.log(1 / 6) for k in range(4)] for t in range(4)]
    prepared = make_prepared(
        "causal-lm",
        {
            "row": [1, 2, 3],
            "input_ids": [[0, 1, 2, 3], [3, 0, 0], [1, 2]],
            "labels": [[-100, -100, 2, 3], [-100, 0, 0], [-100, 2]],  # right right, right wrong, right
            "answer_bytes": [5, 2, 3],
        },
    )
    nats = 4 * math.log(2) + math.log(6)
    metrics = evaluate(Fixed(logits, virtual=virtual), prepared, "validation", batch_size=batch_size)
    assert metrics == pytest.approx(
        {
            "loss": nats / 5,
            "perplexity": math.exp(nats / 5),
            "bits_per_byte": nats / math.log(2) / 10,
            "token_accuracy": 4 / 5,
        },
        rel=1e-5,
    )
    assert set(metrics) == {m.name for m in METRICS.values() if "causal-lm" in m.tasks and not m.generated}


def test_a_loss_that_is_no_number_is_given_as_it_is():
    columns = {"row": [1], "input_ids": [[0, 1]], "labels": [[-100, 1]], "answer_bytes": [1]}
    prepared = make_prepared("causal-lm", columns)
    assert all(
        math.isnan(evaluate(Fixed([[math.nan] * 2] * 2), prepared, "validation")[name])
        for name in ("loss", "perplexity", "bits_per_byte")
    )
    assert evaluate(Fixed([[0.0, -1e6]] * 2), prepared, "validation")["perplexity"] == math.inf


def test_modes_are_as_before_even_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Dropout()).train()
    model[1].eval()
    with pytest.raises(TypeError):
        evaluate(
            model,
            make_prepared("text-classification", {"row": [1], "input_ids": [[1]], "label": [0]}),
            "validation",
        )
    assert [m.training for m in model.modules()] == [True, True, False]


# --- real models ---


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    request = make_request({"data": str(SHARED / "e2e_nlg"), "eval_rows": 12, "steps": 1, "max_length": 200})
    return prepare(request, AutoTokenizer.from_pretrained(MODEL), max_positions=512)


def own_loss(model, table):
    """The model's own loss, row by row, weighted by the tokens that it is the mean of."""
    nats = tokens = 0
    model.eval()
    with torch.no_grad():
        for i in range(table.num_rows):
            batch = collate(table, [i], pad_id=0)
            count = int((batch["labels"][:, 1:] != -100).sum())
            nats += model(**batch).loss.item() * count
            tokens += count
    return nats / tokens


ADAPTERS = {
    "base": None,
    "lora": LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False),
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=7),
    "p-tuning": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
}


@needs_shared
@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("keeps", [True, False])
def test_loss_is_the_models_own(prepared, monkeypatch, name, keeps):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    assert evaluate_module._takes_logits_to_keep(model)
    if ADAPTERS[name] is not None:
        model = get_peft_model(model, ADAPTERS[name])
        assert evaluate_module._takes_logits_to_keep(model)
    if not keeps:
        monkeypatch.setattr(evaluate_module, "_takes_logits_to_keep", lambda model: False)
    monkeypatch.setattr(evaluate_module, "_CHUNK_LOGITS", 512 * 17)  # several chunks, the last one smaller
    metrics = evaluate(model, prepared, "validation", batch_size=5)
    assert metrics["loss"] == pytest.approx(own_loss(model, prepared.validation), rel=1e-5)
    assert model.training is False  # as it came
    tokens = sum(label != -100 for labels in prepared.validation["labels"].to_pylist() for label in labels)
    text_bytes = sum(prepared.validation["answer_bytes"].to_pylist())
    assert metrics["bits_per_byte"] == pytest.approx(metrics["loss"] * tokens / math.log(2) / text_bytes)


@needs_shared
def test_adapters_differ_from_the_base(prepared):
    """Else the test above would hold for adapters that are not looked at."""
    torch.manual_seed(0)
    losses = set()
    for config in ADAPTERS.values():
        model = AutoModelForCausalLM.from_pretrained(MODEL)
        model = get_peft_model(model, config) if config else model
        losses.add(round(evaluate(model, prepared, "test", batch_size=64)["loss"], 4))
    assert len(losses) == len(ADAPTERS)


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("name", ["base", "lora", "prompt", "p-tuning"])
def test_loss_of_an_encoder_decoder_is_its_own(family, name, tmp_path):
    data = make_data("seq2seq-lm")
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_pretrained(make_model(family, "seq2seq-lm", tmp_path))
    settings = {"task_type": "SEQ_2_SEQ_LM", "num_transformer_submodules": 1, "num_virtual_tokens": 3}
    config = {
        "lora": LoraConfig(task_type="SEQ_2_SEQ_LM", init_lora_weights=False, target_modules="all-linear"),
        "prompt": PromptTuningConfig(**settings, num_layers=1),
        "p-tuning": PromptEncoderConfig(**settings, num_layers=1, encoder_hidden_size=16),
    }.get(name)
    model = get_peft_model(model, config).eval() if config else model
    nats = tokens = right = 0
    with torch.no_grad():
        for i in range(data.validation.num_rows):
            batch = collate(data.validation, [i], pad_id=0)
            out = model(**batch)
            nats += out.loss.item() * batch["labels"].numel()
            tokens += batch["labels"].numel()
            right += int((out.logits.argmax(-1) == batch["labels"]).sum())
    metrics = evaluate(model, data, "validation", batch_size=5)
    assert metrics == pytest.approx(
        {
            "loss": nats / tokens,
            "perplexity": math.exp(nats / tokens),
            "bits_per_byte": nats / math.log(2) / sum(data.validation["answer_bytes"].to_pylist()),
            "token_accuracy": right / tokens,
        },
        rel=1e-4,
    )


def test_classes_of_a_real_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "\n".join(f"{'word ' * (i % 9)}number {i},{'ab'[i % 2]}" for i in range(60)))
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    prepared = prepare(make_request({"data": str(path)}), tokenizer, max_positions=512)
    model = AutoModelForSequenceClassification.from_pretrained(demo_model(), num_labels=2).train()
    one = evaluate(model, prepared, "validation", batch_size=64)
    many = evaluate(model, prepared, "validation", batch_size=1)
    assert one == pytest.approx(many, rel=1e-4)
    assert model.training
    model.eval()
    with torch.no_grad():
        table = prepared.validation
        batches = [collate(table, [i], pad_id=0) for i in range(table.num_rows)]
        losses = [model(**batch).loss.item() for batch in batches]
    assert one["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
