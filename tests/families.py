"""Small real models of five families, made from configurations, on disk as Hugging Face folders."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        max_position_embeddings=64,
        pad_token_id=0,
    ),
    "bert": lambda: transformers.BertConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=128,
        max_position_embeddings=64,
    ),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=64, n_layer=3, n_head=4, vocab_size=128, n_positions=64, pad_token_id=0, bos_token_id=1, eos_token_id=2
    ),
    "t5": lambda: transformers.T5Config(
        d_model=64,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        vocab_size=128,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    ),
    "bart": lambda: transformers.BartConfig(
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=320,
        decoder_ffn_dim=320,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        vocab_size=128,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
        decoder_start_token_id=1,
        forced_eos_token_id=None,
        dropout=0.0,
        init_std=0.1,
    ),
}

TASKS = {
    "llama": ("causal-lm", "text-classification"),
    "bert": ("text-classification",),
    "gpt2": ("causal-lm", "text-classification"),
    "t5": ("text-classification", "seq2seq-lm"),
    "bart": ("seq2seq-lm",),
}

AUTO_CLASSES = {
    "causal-lm": transformers.AutoModelForCausalLM,
    "seq2seq-lm": transformers.AutoModelForSeq2SeqLM,
    "text-classification": transformers.AutoModelForSequenceClassification,
}

TOKENS = (1, *range(3, 128))
"""All that `batch_of` and the rows of small runs draw from."""

LABELS = ("a", "b", "c", "d", "e")

PAIRS = [(family, task) for family, tasks in TASKS.items() for task in tasks]


def make_model(family: str, task: str, folder: Path) -> Path:
    """Write a model of a family with random weights into a folder, the same for the same family and task."""
    torch.manual_seed(7)
    config = CONFIGS[family]()
    if task == "text-classification":
        config.num_labels = len(LABELS)
    AUTO_CLASSES[task].from_config(config).save_pretrained(folder)
    return folder


def batch_of(task: str, *, rows: int = 4, length: int = 12) -> dict[str, torch.Tensor]:
    """Make a batch that every family can read; the last token is T5's end of text, which its classifier looks for."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 128, (rows, length), generator=generator)
    ids[:, -1] = 1
    labels = {
        "text-classification": lambda: torch.randint(0, len(LABELS), (rows,), generator=generator),
        "causal-lm": ids.clone,
        "seq2seq-lm": lambda: ids.flip(0),  # another text than the source
    }[task]()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
