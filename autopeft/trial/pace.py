"""How fast a base model trains on this device: a stand-in of a few of its layers takes a step, and is timed."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from autopeft.candidates import BaseFormat
from autopeft.compute import forward_flops
from autopeft.trial.model import AUTO_CLASSES, ModelSource, load_base, load_config
from autopeft.trial.reading import read_anatomy

_LAYERS = 2
_VOCABULARY = 512
_REPEATS = 3


def seconds_per_flop(source: ModelSource, base: BaseFormat, *, rows: int, length: int, device: str) -> float:
    """Measure how long a floating-point operation of a training step takes, everything around it included.

    The stand-in has the model's own layers, two of them, at random; it is loaded as the base would be, so that a
    quantised one pays for what quantisation costs here. Its rows and their length are those of the training.
    """
    with tempfile.TemporaryDirectory() as folder:
        stand_in = write_stand_in(source, Path(folder))
        anatomy = read_anatomy(stand_in)
        model = load_base(stand_in, base, device=device)
    model.enable_input_require_grads()
    model.train()
    ids = torch.randint(3, model.get_input_embeddings().num_embeddings, (rows, length), device=device)
    classes = torch.zeros(rows, dtype=torch.int64, device=device)
    labels = classes if source.task == "text-classification" else ids
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    flops = 2 * (sum(forward_flops(anatomy, rows=rows, length=length)) + 2 * rows * length * anatomy.outer_linear)
    return min(_step(model, batch, device) for _ in range(_REPEATS)) / flops


def write_stand_in(source: ModelSource, folder: Path) -> ModelSource:
    """Write a model of random weights with a few layers of the source's into a folder, and give its source."""
    config = load_config(source)
    text = config.get_text_config()
    for stack in ("num_hidden_layers", "num_decoder_layers", "encoder_layers", "decoder_layers"):
        if getattr(text, stack, None):
            setattr(text, stack, min(_LAYERS, getattr(text, stack)))
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:_LAYERS]
    text.vocab_size = min(_VOCABULARY, text.vocab_size)
    config.pad_token_id = text.pad_token_id = 0
    AUTO_CLASSES[source.task].from_config(config).save_pretrained(folder)
    return replace(source, path=str(folder))


def _step(model: Any, batch: dict[str, torch.Tensor], device: str) -> float:
    """Time one forward and backward pass, in seconds."""
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    start = time.perf_counter()
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=half):
        loss = model(**batch).loss
    loss.backward()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
