"""Rows as tokens for an encoder-decoder: the source that its encoder reads, the target that its decoder must say.

Each is tokenised as the tokenizer customarily does for its side, EOS and language codes included. A source that is too
long is cut before its end token; a target that is too long loses its end, EOS too, so that the model does not learn to
stop there. The decoder's own input is no data: the model makes it of the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from jinja2 import TemplateError

from autopeft.errors import SourceError
from autopeft.trial.columns import Layout
from autopeft.trial.selection import Row, input_part
from autopeft.trial.tokens import IDS, NO_TEMPLATE


def encode_targets(
    rows: Sequence[Row], numbers: Sequence[int], tokenizer: Any, *, layout: Layout, max_length: int, references: int = 0
) -> pa.Table:
    """Tokenise sources and targets, each cut to `max_length`.

    Of a conversation the target is the last turn of the assistant, and the source is all before it.

    Args:
        rows: Role -> text or messages.
        numbers: Number of each row in its split, from 1; kept in the column `row`.
        references: How many rows keep the text of their target, to compare generated text with.

    Returns:
        Columns `row`, `input_ids`, `labels`, `answer_bytes`: UTF-8 bytes of the text that the labels are, and with
        references `reference`: the whole text of the target, null for the other rows.

    Raises:
        SourceError: If a conversation cannot be rendered, or its last turn is empty.
    """
    if "messages" in layout.roles:
        pairs = [_turn(row, number, tokenizer) for row, number in zip(rows, numbers, strict=True)]
    else:
        pairs = [("\n".join(row[role] for role in layout.inputs if row[role]), row[layout.roles[-1]]) for row in rows]
    sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
    # A template writes the special tokens itself.
    special = "messages" not in layout.roles
    given = tokenizer(sources, truncation=True, max_length=max_length, add_special_tokens=special)["input_ids"]
    stop = tokenizer.eos_token_id
    labels, sizes = [], []
    for ids, target in zip(tokenizer(text_target=targets, verbose=False)["input_ids"], targets, strict=True):
        whole = ids if stop is None or stop in ids else [*ids, stop]
        kept = whole[:max_length]
        text = target if len(kept) == len(whole) else tokenizer.decode(kept, skip_special_tokens=True)
        labels.append(kept)
        sizes.append(len(text.encode()))
    columns = {
        "row": pa.array(numbers, pa.int64()),
        "input_ids": pa.array(given, IDS),
        "labels": pa.array(labels, IDS),
        "answer_bytes": pa.array(sizes, pa.int32()),
    }
    if references:
        columns["reference"] = pa.array([t if i < references else None for i, t in enumerate(targets)], pa.string())
    return pa.table(columns)


def _turn(row: Row, number: int, tokenizer: Any) -> tuple[str, str]:
    """Give a conversation up to the last turn of the assistant, and that turn."""
    if tokenizer.chat_template is None:
        raise SourceError(NO_TEMPLATE)
    before = input_part(row, "messages")
    target = row["messages"][len(before)]["content"]
    if not target.strip():
        raise SourceError(f"data: row {number}: the last turn of the assistant is empty; fill or remove it")
    try:
        return tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True), target
    except TemplateError as error:
        raise SourceError(f"data: the chat template refuses row {number} ({error}); change or remove it") from error
