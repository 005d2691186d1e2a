"""The texts that a model generates for held-out rows, and how near they come to the references.

Decoding is greedy, whatever the checkpoint's own generation settings say: so candidates are compared by what they
learned. ROUGE-L is our own fifteen lines, with the words that the package `rouge-score` takes (no stemming) but of any
script: that package keeps a-z and 0-9 only, was last released in 2022, and brings nltk along.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from peft import PeftModel
from sacrebleu.metrics import BLEU, CHRF
from transformers import GenerationConfig

from autopeft.trial.batches import pad, rows_by_length
from autopeft.trial.prepared import IGNORED, Prepared
from autopeft.work import Split

# No row is padded on the left, so PEFT's own numbering is right.
warnings.filterwarnings("ignore", message="Position ids are not supported")


def judge_generated(
    model: Any, prepared: Prepared, split: Split, *, tokenizer: Any, batch_size: int, device: torch.device | str
) -> dict[str, float]:
    """Generate an answer for each row that has a reference, and compare.

    Returns:
        exact_match, rouge_l, bleu and chrf.
    """
    table = prepared.split(split).filter(pc.is_valid(prepared.split(split)["reference"]))
    said = generate(model, table, prepared, tokenizer=tokenizer, batch_size=batch_size, device=device)
    return compare(said, table["reference"].to_pylist())


def generate(
    model: Any, table: pa.Table, prepared: Prepared, *, tokenizer: Any, batch_size: int, device: torch.device | str
) -> list[str]:
    """Generate greedily, for each row, at most as many tokens as the longest answer of the table has.

    A causal model continues the prompt before the last answer, and no row gets longer than `prepared.max_length`.
    """
    causal = prepared.task == "causal-lm"
    rows = table.select(["input_ids", "labels"]).to_pylist()
    starts = [_last_answer(row["labels"]) if causal else len(row["input_ids"]) for row in rows]
    prompts = [row["input_ids"][:start] for row, start in zip(rows, starts, strict=True)]
    longest = max(
        _answer_length(row["labels"], start if causal else 0) for row, start in zip(rows, starts, strict=True)
    )
    said = [""] * len(rows)
    with _greedy(model, tokenizer, pad_id=prepared.pad_id):
        # Not padded where the model goes on from the prompt: PEFT's prompts would put the text at other positions.
        for batch in rows_by_length([len(p) + longest for p in prompts], batch_size=batch_size, equal=causal):
            some = [prompts[i] for i in batch]
            width = len(some[0])
            ids = model.generate(
                input_ids=pad(some, width, prepared.pad_id).to(device),
                attention_mask=pad([[1] * len(prompt) for prompt in some], width, 0).to(device),
                max_new_tokens=min(longest, prepared.max_length - width) if causal else longest,
            )
            texts = tokenizer.batch_decode(ids[:, width:] if causal else ids, skip_special_tokens=True)
            for i, text in zip(batch, texts, strict=True):
                said[i] = text
    return said


def _last_answer(labels: Sequence[int]) -> int:
    """Give the place where the last answer among the labels begins."""
    end = max(i for i, label in enumerate(labels) if label != IGNORED)
    return end + 1 - len(list(takewhile(lambda label: label != IGNORED, reversed(labels[: end + 1]))))


def _answer_length(labels: Sequence[int], start: int) -> int:
    return sum(label != IGNORED for label in labels[start:])


@contextmanager
def _greedy(model: Any, tokenizer: Any, *, pad_id: int) -> Iterator[None]:
    """Put away the checkpoint's generation settings but for the tokens that begin and end a text."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    own = base.generation_config
    stops = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    base.generation_config = GenerationConfig(
        do_sample=False,
        use_cache=True,
        bos_token_id=own.bos_token_id,
        eos_token_id=sorted({stop for stop in (*stops, tokenizer.eos_token_id) if stop is not None}) or None,
        pad_token_id=pad_id,
        # As in training, where the model puts it before the labels.
        decoder_start_token_id=getattr(base.config, "decoder_start_token_id", None),
        forced_bos_token_id=own.forced_bos_token_id,
    )
    try:
        yield
    finally:
        base.generation_config = own


def compare(said: Sequence[str], meant: Sequence[str]) -> dict[str, float]:
    """Compare texts with one reference each; white space of any kind and length is one space, as T5 reads it.

    >>> compare(["a cat", "the dog"], ["a  cat ", "a dog"])["exact_match"]
    0.5
    """
    said, meant = ([" ".join(text.split()) for text in texts] for texts in (said, meant))
    pairs = list(zip(said, meant, strict=True))
    return {
        "exact_match": sum(one == other for one, other in pairs) / len(pairs),
        "rouge_l": sum(rouge_l(one, other) for one, other in pairs) / len(pairs),
        "bleu": float(BLEU(force=True).corpus_score(said, [meant]).score),  # forced: no advice about tokenised texts
        "chrf": float(CHRF().corpus_score(said, [meant]).score),
    }


def rouge_l(said: str, meant: str) -> float:
    """Give the F1 of the longest common subsequence of words; Lin 2004, "ROUGE".

    >>> round(rouge_l("the cat sat on the mat", "the cat lay on a mat"), 3)
    0.667
    """
    one, other = (re.findall(r"[^\W_]+", text.lower()) for text in (said, meant))
    common = _longest_common(one, other)
    return 2 * common / (len(one) + len(other)) if common else 0.0


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Give the length of the longest common subsequence, a row of the table in one integer (Hyyrö 2004)."""
    at: dict[str, int] = defaultdict(int)
    for i, word in enumerate(one):
        at[word] |= 1 << i
    full = (1 << len(one)) - 1
    row = full
    for word in other:
        row = ((row + (row & at[word])) | (row & ~at[word])) & full
    return len(one) - row.bit_count()
