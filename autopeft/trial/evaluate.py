"""Metrics of a model on held-out data, by the names in `objectives.METRICS`."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pyarrow.compute as pc
import torch
from peft import PeftModel
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from autopeft.anatomy import Task
from autopeft.trial.batches import Batch, evaluation_batches
from autopeft.trial.generation import judge_generated
from autopeft.trial.prepared import IGNORED, Prepared
from autopeft.work import Split

_CHUNK_LOGITS = 2**24
"""Logits turned to fp32 at once: 64 MiB."""


def evaluate(
    model: nn.Module,
    prepared: Prepared,
    split: Split,
    *,
    task: Task | None = None,
    tokenizer: Any = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Measure a model on a split; its train or eval mode is as before afterwards.

    Losses are in nats and fp32, whatever the model computes in. A value that is not finite is given as it is.

    Args:
        model: Called with the tensors of a batch, with labels if it is an encoder-decoder; must return `logits`.
        task: Must be the task of the data, which is the default.
        tokenizer: The model's; needed where the data has references.
        batch_size: Most rows of a forward pass; long rows go in smaller batches.

    Returns:
        For text-classification accuracy, f1_macro, matthews and loss; for texts loss (mean over the answer tokens),
        perplexity, bits_per_byte and token_accuracy, and with references what `judge_generated` gives.

    Raises:
        SourceError: If there is no such split.
    """
    assert task in (None, prepared.task), f"{task} on data for {prepared.task}"
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    measure = _measure_classes if prepared.task == "text-classification" else _measure_answers
    try:
        with torch.inference_mode():
            metrics = measure(model, prepared, split, batch_size, device)
            if "reference" in prepared.split(split).column_names:
                assert tokenizer is not None, "references are texts"
                metrics |= judge_generated(
                    model, prepared, split, tokenizer=tokenizer, batch_size=batch_size, device=device
                )
            return metrics
    finally:
        for module, training in modes:
            module.training = training


def _measure_classes(
    model: nn.Module, prepared: Prepared, split: Split, batch_size: int, device: torch.device | str
) -> dict[str, float]:
    nats, truth, said = 0.0, [], []
    for batch in evaluation_batches(prepared, split, batch_size=batch_size):
        labels, inputs = _on(device, batch)
        logits = model(**inputs).logits.float()
        nats += cross_entropy(logits, labels, reduction="sum").item()
        truth += labels.tolist()
        said += logits.argmax(-1).tolist()
    return {
        "accuracy": float(accuracy_score(truth, said)),
        "f1_macro": float(f1_score(truth, said, average="macro", zero_division=0)),
        "matthews": float(matthews_corrcoef(truth, said)),
        "loss": nats / len(truth),
    }


def _measure_answers(
    model: nn.Module, prepared: Prepared, split: Split, batch_size: int, device: torch.device | str
) -> dict[str, float]:
    nats, right, tokens = 0.0, 0, 0
    keeps = _takes_logits_to_keep(model)
    for batch in evaluation_batches(prepared, split, batch_size=batch_size):
        labels, inputs = _on(device, batch)
        if prepared.task == "seq2seq-lm":
            logits, targets = model(**inputs, labels=labels).logits, labels  # it makes the decoder's input of them
        else:
            logits, targets = _continue(model, inputs, labels, keeps=keeps)
        answer = targets != IGNORED
        logits, targets = logits[answer], targets[answer]
        rows = max(1, _CHUNK_LOGITS // logits.shape[-1])
        for some, wish in zip(logits.split(rows), targets.split(rows), strict=True):
            nats += cross_entropy(some.float(), wish, reduction="sum").item()
            right += int((some.argmax(-1) == wish).sum())
        tokens += len(targets)
    loss = nats / tokens
    text_bytes = pc.sum(prepared.split(split)["answer_bytes"]).as_py()
    return {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf if loss == loss else math.nan,
        "bits_per_byte": nats / math.log(2) / text_bytes if text_bytes else math.nan,
        "token_accuracy": right / tokens,
    }


def _continue(model: nn.Module, inputs: Batch, labels: Tensor, *, keeps: bool) -> tuple[Tensor, Tensor]:
    """Give the logits of a causal model from the first answer of the batch on, and the labels that they predict."""
    first = int((labels != IGNORED).any(0).nonzero()[0])  # the logits before it predict no answer of any row
    wanted = labels.shape[1] - first + 1
    logits = model(**inputs, **({"logits_to_keep": wanted} if keeps else {})).logits
    # Counted from the end: prompt tuning puts its virtual tokens before the input, and logits come for these too.
    return logits[:, -wanted:-1], labels[:, first:]


def _on(device: torch.device | str, batch: Batch) -> tuple[Tensor, Batch]:
    moved = {name: tensor.to(device) for name, tensor in batch.items()}
    return moved.pop("labels"), moved


def _takes_logits_to_keep(model: nn.Module) -> bool:
    """Tell whether the model can leave out the logits of prompts, a large part of the memory of an evaluation."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model  # PeftModel's own says **kwargs
    return "logits_to_keep" in inspect.signature(base.forward).parameters
