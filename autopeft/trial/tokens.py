"""Rows as tokens: what the model reads, and which of it it is trained to say.

A prompt and its answer are tokenised apart and then joined: so the prompt has exactly the tokens that it has when the
model is asked later, and an answer never shares a token with its prompt. What the tokenizer customarily puts before a
text (BOS) goes before the prompt; EOS goes after the answer, so that the model learns to stop. A conversation is
rendered whole by the tokenizer's own template and its answers are found in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa
from jinja2 import TemplateError

from autopeft.errors import SourceError
from autopeft.trial.columns import Layout
from autopeft.trial.prepared import IGNORED
from autopeft.trial.selection import Row

IDS = pa.list_(pa.int32())
NO_TEMPLATE = (
    "data: the rows are conversations, but the model's tokenizer has no chat template; "
    "take an instruct model, or data with prompt and completion"
)
"""What is wrong with conversations for a model that was not made for them."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # by which a template marks what the assistant says
_SENTINEL = "\ue000answer\ue001"  # private-use characters: no answer begins or ends with them


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row of a causal LM, uncut.

    Attributes:
        answer: For each token whether it is trained on.
        text_bytes: UTF-8 bytes of the answer's text; None where that is not known exactly.
    """

    input_ids: Sequence[int]
    answer: Sequence[bool]
    text_bytes: int | None


def encode_classes(
    rows: Sequence[Row], numbers: Sequence[int], tokenizer: Any, *, label_ids: Mapping[str, int], max_length: int
) -> pa.Table:
    """Tokenise texts, or pairs of texts, with their labels.

    Args:
        rows: Role -> text.
        numbers: Number of each row in its split, from 1; kept in the column `row`.

    Returns:
        Columns `row`, `input_ids`, `label`, and `token_type_ids` where the tokenizer makes them.
    """
    pairs = [row["text_pair"] for row in rows] if rows[0]["text_pair"] else None
    encoded = tokenizer([row["text"] for row in rows], pairs, truncation=True, max_length=max_length)
    columns: dict[str, Any] = {
        "row": pa.array(numbers, pa.int64()),
        "input_ids": pa.array(encoded["input_ids"], IDS),
        "label": pa.array([label_ids[row["label"]] for row in rows], pa.int32()),
    }
    if "token_type_ids" in encoded:
        columns["token_type_ids"] = pa.array(encoded["token_type_ids"], IDS)
    return pa.table(columns)


def encode_answers(
    rows: Sequence[Row], numbers: Sequence[int], tokenizer: Any, *, layout: Layout, max_length: int, references: int = 0
) -> pa.Table:
    """Tokenise prompts with their answers; the labels of all other tokens are IGNORED.

    Args:
        rows: Role -> text or messages.
        numbers: Number of each row in its split, from 1; kept in the column `row`.
        references: How many rows keep the text of their last answer, to compare generated text with.

    Returns:
        Columns `row`, `input_ids`, `labels`, `answer_bytes`: UTF-8 bytes of the text that is predicted, and with
        references `reference`: the whole text of the last answer, null for the other rows, and where `max_length`
        cuts it off. A token that nothing comes before is not predicted.

    Raises:
        SourceError: If a conversation cannot be rendered.
    """
    if "messages" in layout.roles:
        encoded: Iterator[Encoded] = _encode_chats(rows, numbers, tokenizer)
    else:
        encoded = _encode_pairs([prompt_and_answer(row, layout) for row in rows], tokenizer)
    input_ids, labels, sizes = [], [], []
    texts: list[str | None] = []
    for row in encoded:
        ids = list(row.input_ids[:max_length])
        wanted = [IGNORED if i == 0 or not answer else ids[i] for i, answer in enumerate(row.answer[:max_length])]
        whole = row.text_bytes is not None and len(row.input_ids) <= max_length and not row.answer[0]
        size = row.text_bytes if whole else _predicted_bytes(ids, row.answer, tokenizer)
        input_ids.append(ids)
        labels.append(wanted)
        sizes.append(size)
        texts.append(_last_answer(row, tokenizer, max_length) if len(texts) < references else None)
    columns = {
        "row": pa.array(numbers, pa.int64()),
        "input_ids": pa.array(input_ids, IDS),
        "labels": pa.array(labels, IDS),
        "answer_bytes": pa.array(sizes, pa.int32()),
    }
    if references:
        columns["reference"] = pa.array(texts, pa.string())
    return pa.table(columns)


def _last_answer(row: Encoded, tokenizer: Any, max_length: int) -> str | None:
    end = max((i + 1 for i, answer in enumerate(row.answer) if answer), default=0)
    start = next((i + 1 for i in reversed(range(end)) if not row.answer[i]), 0)
    return tokenizer.decode(row.input_ids[start:end], skip_special_tokens=True) if start < max_length else None


def prompt_and_answer(row: Row, layout: Layout) -> tuple[str, str]:
    """Give the prompt and the answer of a row; a line break parts what no white space parts already.

    >>> layout = Layout("causal-lm", ("instruction", "output"), ("input",))
    >>> prompt_and_answer({"instruction": "Add.", "input": "1 2", "output": "3"}, layout)
    ('Add.\\n1 2\\n', '3')
    """
    if layout.roles == ("text",):
        return "", row["text"]
    answer = row[layout.roles[-1]]
    prompt = "\n".join(row[role] for role in layout.inputs if row[role])
    parted = prompt[-1:].isspace() or answer[:1].isspace()
    return (prompt if parted else prompt + "\n"), answer


def _encode_pairs(pairs: Sequence[tuple[str, str]], tokenizer: Any) -> Iterator[Encoded]:
    start = _customary_start(tokenizer)
    stop = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def plain(texts: Iterable[str]) -> Any:
        return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]

    prompts, answers = plain(prompt for prompt, _ in pairs), plain(answer for _, answer in pairs)
    for prompt_ids, answer_ids, (_, answer) in zip(prompts, answers, pairs, strict=True):
        given = [*start, *prompt_ids]
        said = [*answer_ids, *stop]
        yield Encoded(given + said, [False] * len(given) + [True] * len(said), len(answer.encode()))


def _predicted_bytes(ids: Sequence[int], answer: Sequence[bool], tokenizer: Any) -> int:
    """Count the bytes of the text of answers that are cut or not predicted from their first token on."""

    def size(run: list[int]) -> int:
        return len(tokenizer.decode(run, skip_special_tokens=True).encode())

    # Run by run, for a token's text depends on whether one comes before it (SentencePiece drops a leading space).
    runs = [[ids[i] for i, _ in run] for said, run in groupby(enumerate(answer[: len(ids)]), itemgetter(1)) if said]
    return sum(size(run) for run in runs) - (size(list(ids[:1])) if answer[0] else 0)


def _customary_start(tokenizer: Any) -> list[int]:
    """Give the tokens that the tokenizer puts before any text: BOS, CLS or none."""
    return _around(tokenizer)[0]


def closing_tokens(tokenizer: Any) -> int:
    """Count the tokens that the tokenizer puts after any text: SEP, EOS or none."""
    return len(_around(tokenizer)[1])


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    whole, plain = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    at = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
    return list(whole[:at]), list(whole[at + len(plain) :])


def _encode_chats(rows: Sequence[Row], numbers: Sequence[int], tokenizer: Any) -> Iterator[Encoded]:
    if tokenizer.chat_template is None:
        raise SourceError(NO_TEMPLATE)
    encode = _encode_marked if _GENERATION.search(tokenizer.get_chat_template()) else _encode_chat
    for row, number in zip(rows, numbers, strict=True):
        try:
            yield encode(row["messages"], tokenizer)
        except TemplateError as error:
            raise SourceError(f"data: the chat template refuses row {number} ({error}); change or remove it") from error


def _encode_marked(messages: list[dict[str, str]], tokenizer: Any) -> Encoded:
    """Encode a conversation whose template itself marks what the assistant generates."""
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    return Encoded(encoded["input_ids"], [bool(mark) for mark in encoded["assistant_masks"]], None)


def _encode_chat(messages: list[dict[str, str]], tokenizer: Any) -> Encoded:
    """Encode a conversation: the answers are what changes in the rendered text when an assistant's turn changes.

    This holds for templates that treat the last turn otherwise than those before it, where the text of a prefix of the
    conversation is no prefix of the text. To each answer belongs the special token that closes a turn; where the
    template closes the last turn with none, EOS does.
    """
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    closing = _closing(messages[: turns[-1] + 1], tokenizer)
    spans, text_bytes = [], 0
    for turn in turns:
        other = tokenizer.apply_chat_template(_with_sentinel(messages, turn), tokenize=False)
        start = _shared(text, other)
        end = len(text) - _shared(text[start:][::-1], other[start:][::-1])
        text_bytes += len(text[start:end].encode())
        spans.append((start, end + len(closing) if text.startswith(closing, end) else end))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = list(encoded["input_ids"])
    answer = [any(a < end and b > start for start, end in spans) for a, b in encoded["offset_mapping"]]
    if not closing and turns[-1] == len(messages) - 1 and tokenizer.eos_token_id is not None:
        last = max((i for i, said in enumerate(answer) if said), default=len(ids) - 1)
        ids, answer = [*ids[: last + 1], tokenizer.eos_token_id], [*answer[: last + 1], True]
    return Encoded(ids, answer, text_bytes)


def _closing(messages: list[dict[str, str]], tokenizer: Any) -> str:
    """Give what follows the text of the last turn, up to and with its first special token; empty without one."""
    text = tokenizer.apply_chat_template(_with_sentinel(messages, len(messages) - 1), tokenize=False)
    tail = text[text.index(_SENTINEL) + len(_SENTINEL) :]
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    encoded = tokenizer(tail, add_special_tokens=False, return_offsets_mapping=True)
    ends = (
        b for token, (_, b) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True) if token in special
    )
    return tail[: next(ends, 0)]


def _with_sentinel(messages: list[dict[str, str]], turn: int) -> list[dict[str, str]]:
    return [{**message, "content": _SENTINEL} if i == turn else message for i, message in enumerate(messages)]


def _shared(one: str, other: str) -> int:
    """Count the characters that two texts share at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
