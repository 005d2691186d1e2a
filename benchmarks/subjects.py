"""The models, data and LoRA configurations that several benchmarks train on.

stories260K (of Karpathy's tinyllamas, a Llama of 260 thousand weights) is not shipped: the environment variable
STORIES260K names its folder, in the format of Hugging Face with its tokenizer.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 0
CUSTOMARY_RATE = 5e-4  # of LoRA in autopeft: a space gives multiples of it
RANKS = (2, 4, 8, 16, 32)
TARGETS: dict[str, tuple[str, ...]] = {
    "qv": ("query", "value"),
    "attention": ("query", "key", "value", "output"),
    "all": ("query", "key", "value", "output", "gate", "up", "down"),
}
_ROW_CHARACTERS = 480


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with its data.

    Attributes:
        make: Writes the model into a folder; gives a reason if it cannot be had.
        batch_size, max_length, eval_rows: As in a SearchRequest; rows are cut so that none of a language model's is
            shorter, for Trainer averages losses over batches, not over tokens.
    """

    make: Callable[[Path], str]
    task: str
    batch_size: int
    max_length: int
    eval_rows: int


def docstrings() -> dict[str, dict[str, list[str]]]:
    """Give autopeft's embedded data: split -> text, label."""
    from autopeft.trial.demo import read_docstrings

    return {name: split.to_dict() for name, split in read_docstrings().splits.items()}


def make_llama(folder: Path) -> str:
    """Write a Llama of 23.4M random weights, and a tokenizer trained on the docstrings."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=12_000, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(docstrings()["train"]["text"], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12_000, hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=256, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return ""


def make_minilm(folder: Path) -> str:
    """Copy the embedded MiniLM with its dropout off: its random stream would differ between the ways."""
    from autopeft.trial.demo import demo_model

    shutil.copytree(demo_model(), folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return ""


def make_stories(folder: Path) -> str:
    """Copy stories260K, a Llama trained on children's stories, from where the environment says."""
    source = os.environ.get("STORIES260K", "")
    if not (Path(source) / "config.json").is_file():
        return (
            "STORIES260K: set it to a folder with stories260K in the format of Hugging Face (the weights are in "
            f"karpathy/tinyllamas on the Hub, to be converted); it is {source!r} now"
        )
    shutil.copytree(source, folder, dirs_exist_ok=True)
    return ""


SUBJECTS = {
    "llama25m": Subject(make_llama, "causal-lm", batch_size=8, max_length=64, eval_rows=64),
    "minilm": Subject(make_minilm, "text-classification", batch_size=16, max_length=32, eval_rows=320),
    "stories260k": Subject(make_stories, "causal-lm", batch_size=8, max_length=64, eval_rows=64),
    "llama25m-small": Subject(make_llama, "causal-lm", batch_size=4, max_length=16, eval_rows=64),
    "stories260k-small": Subject(make_stories, "causal-lm", batch_size=4, max_length=16, eval_rows=64),
}
"""Those called small have 64 tokens a step in place of 512: there more of a trial is not arithmetic."""

USUAL = ("llama25m", "minilm", "stories260k")


def write_data(subject: Subject, folder: Path) -> None:
    """Write the docstrings as the subject's data; for a language model several in a row, so that all rows are long."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in docstrings().items():
        rows: list[dict[str, str]]
        if subject.task == "text-classification":
            rows = [{"text": t, "label": label} for t, label in zip(split["text"], split["label"], strict=True)]
        else:
            rows = [{"text": text} for text in _long_texts(split["text"])]
        random.Random(SEED).shuffle(rows)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _long_texts(texts: Sequence[str]) -> Iterator[str]:
    """Join texts until they surely fill a row; what is left at the end is dropped."""
    joined = ""
    for text in texts:
        joined += text + "\n"
        if len(joined) >= _ROW_CHARACTERS:
            yield joined
            joined = ""


def configurations(count: int) -> list[dict[str, Any]]:
    """Draw the configurations: rank, targets, learning rate; all different."""
    draw, found = random.Random(SEED), []
    for _ in range(count):
        rate = CUSTOMARY_RATE * round(10 ** draw.uniform(-0.2, 1.3), 3)
        found.append({"r": draw.choice(RANKS), "targets": draw.choice(list(TARGETS)), "lr": rate})
    return found


def space(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Give autopeft's form of the configurations: a space that begins with them."""
    return {
        "parameters": {
            "method": {"choices": ["lora"]},
            "lr_multiple": {"low": 0.1, "high": 30, "log": True, "default": 1},
            "lora.rank": {"ordinal": list(RANKS), "default": 8},
            "lora.share": {"ordinal": [0, 1], "default": 1, "per": "kinds"},
        },
        "start": [
            {
                "method": "lora",
                "lora.rank": c["r"],
                "lora.share": dict.fromkeys(TARGETS[c["targets"]], 1),
                "lr_multiple": c["lr"] / CUSTOMARY_RATE,
            }
            for c in configs
        ],
    }


def request_fields(subject: Subject, work: Path, *, steps: int, trials: int) -> dict[str, Any]:
    """Give the fields of autopeft's request."""
    return {
        "model": str(work / "model"), "data": str(work / "data"), "task": subject.task, "budget": "none",
        "trials": trials, "steps": steps, "batch_size": subject.batch_size, "max_length": subject.max_length,
        "eval_rows": subject.eval_rows, "seed": SEED, "rungs": "off", "final_seeds": 0,
    }  # fmt: skip
