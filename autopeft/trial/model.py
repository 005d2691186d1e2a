"""The base model: its anatomy without weights, loading it at a bit-width, and a checksum of it."""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import xxhash
from safetensors import SafetensorError, safe_open
from torch import nn

from autopeft.anatomy import (
    UNQUANTISED,
    Task,
)
from autopeft.candidates import BaseFormat
from autopeft.errors import RequestError, SourceError
from autopeft.trial.memory import ran_out_of_memory

# bitsandbytes warns on every matrix product of an int8 base on CPU, and of a kernel it can do without.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

AUTO_CLASSES = {
    "text-classification": transformers.AutoModelForSequenceClassification,
    "causal-lm": transformers.AutoModelForCausalLM,
    "seq2seq-lm": transformers.AutoModelForSeq2SeqLM,
}


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a base model comes from and what it is for; JSON both ways through its fields.

    Attributes:
        path: Folder or hub id.
        label_names: Names of the classes of a text-classification task, by index.
        pad_token_id: The tokenizer's padding, which a classifier on a decoder must know.
    """

    path: str
    task: Task
    label_names: tuple[str, ...] = ()
    pad_token_id: int = 0

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ModelSource:
        """Rebuild from its fields, or from JSON, which knows no tuples."""
        return cls(**{**fields, "label_names": tuple(fields["label_names"])})


def load_config(source: ModelSource) -> Any:
    """Load the model's configuration, set for the task.

    Raises:
        SourceError: If it cannot be read, or the model has no form for the task.
    """
    config = _read_config(source.path)
    if source.task == "text-classification":
        config.id2label = dict(enumerate(source.label_names))
        config.label2id = {name: i for i, name in config.id2label.items()}
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = source.pad_token_id
    if type(config) not in AUTO_CLASSES[source.task]._model_mapping:
        forms = [task for task, auto in AUTO_CLASSES.items() if type(config) in auto._model_mapping]
        raise SourceError(
            f"model: {source.path!r} is a {config.model_type}, which transformers has no {source.task} form of; "
            f"it has {' and '.join(forms) or 'none that autopeft trains'}"
        )
    if source.task == "seq2seq-lm" and getattr(config, "decoder_start_token_id", None) is None:
        raise SourceError(
            f"model: config.json of {source.path!r} has no decoder_start_token_id, the token that a decoder begins "
            "with; add the one of its pretraining"
        )
    return config


def _read_config(path: str) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise SourceError(_unreadable(path, error)) from error


def check_weights(path: str) -> None:
    """Make sure that a folder's weights are there and whole as far as their headers tell; a hub id is not looked into.

    Raises:
        SourceError: If they are not.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    found = {file.name for file in (*folder.glob("*.safetensors"), *folder.glob("*.bin"))}
    if not found:
        raise SourceError(f"model: the folder {path!r} holds no weights (*.safetensors, *.bin)")
    for index in folder.glob("*.index.json"):
        needed = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        if missing := sorted(needed - found):
            raise SourceError(f"model: the folder {path!r} lacks {', '.join(missing[:3])}, which {index.name} names")
    for name in sorted(found):
        if name.endswith(".safetensors"):
            try:
                with safe_open(folder / name, framework="pt"):
                    pass
            except SafetensorError as error:
                raise SourceError(f"model: {str(folder / name)!r} is damaged: {error}") from error


def load_tokenizer(path: str) -> Any:
    """Load the model's tokenizer, with a padding token.

    Raises:
        SourceError: If it cannot be read.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(f"{_unreadable(path, error)} (reading its tokenizer)") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _unreadable(path: str, error: Exception) -> str:
    first = str(error).strip().splitlines()[0]
    if os.path.isdir(path) and not os.path.exists(os.path.join(path, "config.json")):
        return f"model: the folder {path!r} is no model: it has no config.json"
    if os.path.exists(path):
        return f"model: cannot read the folder {path!r}: {first}"
    return f"model: {path!r} is no folder here, and as a hub id it cannot be loaded: {first}"


def position_limit(path: str) -> int | None:
    """Give the most tokens that a model can take, on either side; None where its configuration sets no limit.

    Raises:
        SourceError: If the configuration cannot be read.
    """
    config = _read_config(path).get_text_config()
    names = ("max_position_embeddings", "max_encoder_position_embeddings", "max_decoder_position_embeddings")
    return min((limit for name in names if (limit := getattr(config, name, None))), default=None)


def answering_task(path: str) -> Task:
    """Give the task by which a model learns to answer: sequence to sequence where it has an encoder and a decoder.

    Raises:
        SourceError: If the configuration cannot be read.
    """
    return "seq2seq-lm" if _read_config(path).is_encoder_decoder else "causal-lm"


def check_trains(source: ModelSource, *, packed: bool, checkpointed: bool) -> None:
    """Make sure that a model can be trained in the ways that are asked for.

    Raises:
        RequestError: If it cannot, as far as its class tells.
        SourceError: If it cannot be read.
    """
    found = AUTO_CLASSES[source.task]._model_mapping[type(load_config(source))]
    kind = found[0] if isinstance(found, tuple) else found
    faults = []
    if packed and "position_ids" not in inspect.signature(kind.forward).parameters:
        faults.append(
            f"packing: {kind.__name__} takes no position_ids, so texts in a row would see each other; drop it"
        )
    if checkpointed and not kind.supports_gradient_checkpointing:
        faults.append(f"gradient_checkpointing: {kind.__name__} has none; drop it")
    if faults:
        raise RequestError(*faults)


DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def dtype_of(base: BaseFormat, device: str) -> torch.dtype:
    """Give what a base computes in, and holds the weights in that are not quantised."""
    if base.bits == 32:
        return torch.float32
    if base.compute_dtype != "auto":
        return DTYPES[base.compute_dtype]
    return torch.float32 if base.bits in (4, 8) and device == "cpu" else torch.bfloat16


def load_base(source: ModelSource, base: BaseFormat, *, device: str, seed: int = 0) -> Any:
    """Load the frozen base in a format.

    A new task head is drawn from `seed`, so that it is the same in every worker.

    Raises:
        SourceError: If the weights cannot be read.
        MemoryError, torch.OutOfMemoryError: If they do not fit.
    """
    config = load_config(source)
    dtype = dtype_of(base, device)
    # A checkpoint that was made for other classes has a head of another size; its place takes a new one.
    other_head = source.task == "text-classification"
    options: dict[str, Any] = {"dtype": dtype, "config": config, "ignore_mismatched_sizes": other_head}
    if base.bits in (4, 8):
        options |= {"quantization_config": quantization(base, dtype), "device_map": {"": device}}
    torch.manual_seed(seed)
    try:
        model = AUTO_CLASSES[source.task].from_pretrained(source.path, **options)
    except (OSError, ValueError, RuntimeError) as error:
        if ran_out_of_memory(error):
            raise
        raise SourceError(_unreadable(source.path, error)) from error
    if base.bits not in (4, 8):
        model.to(device)
    for module in model.modules():
        # On CPUs with AVX512-BF16 bitsandbytes repacks weights in eval mode and never back: wrong gradients after.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    model.requires_grad_(False)
    model.config.use_cache = False
    return model.eval()


def quantization(base: BaseFormat, compute_dtype: torch.dtype) -> Any:
    """Give the bitsandbytes configuration of a 4- or 8-bit base; a task head stays unquantised."""
    keep = list(UNQUANTISED)
    if base.bits == 8:
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=keep)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=base.quant_type,
        bnb_4bit_use_double_quant=base.double_quant,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=keep,
    )


def tensors_of(model: nn.Module) -> Mapping[str, torch.Tensor]:
    """Give every tensor that the model holds, the scales of quantised weights among them."""
    found: dict[str, torch.Tensor] = dict(model.named_parameters())
    found |= dict(model.named_buffers())
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        for state in (
            getattr(weight, "quant_state", None),
            getattr(getattr(weight, "quant_state", None), "state2", None),
        ):
            for field in ("absmax", "code", "offset"):
                if isinstance(tensor := getattr(state, field, None), torch.Tensor):
                    found[f"{name}.{'state2.' if state is not getattr(weight, 'quant_state', None) else ''}{field}"] = (
                        tensor
                    )
        for holder, field in ((weight, "SCB"), (getattr(module, "state", None), "SCB")):
            if isinstance(tensor := getattr(holder, field, None), torch.Tensor):
                found[f"{name}.{field}"] = tensor
    return found


_CHUNK = 1 << 22


def checksum(model: nn.Module) -> str:
    """Give a checksum of all tensors of a model, order and position included; computed where the tensors are."""
    total = 0
    for name, tensor in sorted(tensors_of(model).items()):
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
        value = _checksum_on_device(flat) if flat.is_cuda else xxhash.xxh3_64_intdigest(flat.numpy().data)
        total = (total * 1_000_003 + value + flat.numel() + sum(name.encode())) % (1 << 64)
    return f"{total:016x}"


def _checksum_on_device(flat: torch.Tensor) -> int:
    """Give a checksum of bytes without moving them."""
    words, total = flat[: flat.numel() // 4 * 4].view(torch.int32), 0
    # Odd, so that no bit of a word is lost in the product.
    weights = 2 * torch.arange(min(_CHUNK, words.numel()), device=flat.device, dtype=torch.int32) + 1
    for start in range(0, words.numel(), _CHUNK):
        chunk = words[start : start + _CHUNK]
        # Products wrap around in 32 bits, which keeps them exact; the sum is taken in 64.
        total = (total * 1_000_003 + int((chunk * weights[: chunk.numel()]).sum(dtype=torch.int64)) + start) % (1 << 64)
    return total * 1_000_003 + int.from_bytes(bytes(flat[words.numel() * 4 :].tolist()), "little")
