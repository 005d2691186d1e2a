"""Which rows a search reads: every row is looked at once, a validation split is made, rows are chosen by hash."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from autopeft.errors import SourceError
from autopeft.plain import canonical_json
from autopeft.trial.columns import Layout

HELD_OUT_SHARE = 0.1
"""Share of the distinct inputs of train that becomes validation, and then test, where there is none."""

FEWEST_TO_TEST = 100
"""Distinct inputs from which train is so large that a test split is made of it, too."""

Row = Mapping[str, Any]
"""Role -> value of one row: text, or for `messages` a list of {role, content}."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What was seen of the rows of one split; the sequences have one entry a row.

    Attributes:
        rows: The `datasets.Dataset`.
        positions: Where in it the rows lie, from 0.
        inputs: Hash of what the model is given: equal for equal texts, whatever their label or answer.
        contents: Hash of the whole row.
        labels: Label as text; empty for a task without labels.
        label_texts: Label -> names seen beside it in `label_text`.
        class_names: Names in the order of a ClassLabel column; empty for any other column.
    """

    rows: Any
    positions: Sequence[int]
    inputs: Sequence[bytes]
    contents: Sequence[bytes]
    labels: Sequence[str]
    label_texts: Mapping[str, frozenset[str]]
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, kept: Sequence[int]) -> Survey:
        """Keep the rows at these indices of the sequences."""
        return Survey(
            self.rows,
            [self.positions[i] for i in kept],
            [self.inputs[i] for i in kept],
            [self.contents[i] for i in kept],
            [self.labels[i] for i in kept] if self.labels else (),
            self.label_texts,
            self.class_names,
        )


class NoLabelsError(SourceError):
    """Not one row of a split has a label: the usual form of a public test split."""


def survey_rows(split: str, rows: Any, layout: Layout, columns: Mapping[str, str]) -> Survey:
    """Look at every row of a split once.

    Args:
        split: Name of the split, for messages.
        rows: A `datasets.Dataset`.
        columns: Role -> column, as `find_layout` gave it.

    Raises:
        SourceError: If a column is missing here, or rows miss a text, a label or a message; all are counted, the
            first few are named.
    """
    absent = [column for column in columns.values() if column not in rows.column_names]
    if absent:
        raise SourceError(
            f"columns: the {split} split has no {', '.join(absent)}; it has {', '.join(rows.column_names)}"
        )
    names = _class_names(rows, columns)
    inputs, contents, labels = [], [], []
    label_texts: dict[str, set[str]] = {}
    faults: dict[str, list[int]] = {}
    for position, row in enumerate(read_rows(rows, range(len(rows)), layout, columns, names)):
        for role in (*layout.roles, *(role for role in ("text_pair",) if role in columns)):
            if not row[role]:
                faults.setdefault(columns[role], []).append(position + 1)
        if faults:
            continue  # nothing else is used of this split
        inputs.append(_hash([input_part(row, role) for role in layout.inputs if role in columns]))
        contents.append(_hash([row[role] for role in (*layout.roles, *layout.optional) if role in columns]))
        if "label" in layout.roles:
            labels.append(row["label"])
            if row.get("label_text"):
                label_texts.setdefault(row["label"], set()).add(row["label_text"])
    if len(faults.get(columns.get("label", ""), ())) == len(rows):
        raise NoLabelsError(f"data: {split}: no row has a label in {columns['label']!r}; fill the column")
    if faults:
        needed = " (turns with role and text, one at least of the assistant)" if "messages" in layout.roles else ""
        raise SourceError(
            "\n".join(
                f"data: {split}: {show_rows(at)} no {what}{needed}; fill or remove" for what, at in faults.items()
            )
        )
    texts = {label: frozenset(found) for label, found in label_texts.items()}
    return Survey(rows, range(len(rows)), inputs, contents, labels, texts, names)


def read_rows(
    rows: Any, positions: Sequence[int], layout: Layout, columns: Mapping[str, str], class_names: tuple[str, ...]
) -> Iterable[Row]:
    """Read rows as role -> value; a value that is missing or of no use is empty.

    Raises:
        SourceError: If a label is neither a name nor a whole number.
    """
    wanted = rows.select_columns(list(columns.values())) if len(positions) else rows
    if not isinstance(positions, range):
        wanted = wanted.select(positions)
    for batch in wanted.iter(batch_size=1000):
        for values in zip(*(batch[column] for column in columns.values()), strict=True):
            row: dict[str, Any] = dict.fromkeys((*layout.roles, *layout.optional), "")
            for role, value in zip(columns, values, strict=True):
                if role == "label":
                    row[role] = _label(value, class_names, columns["label"])
                elif role == "messages":
                    row[role] = _messages(value)
                else:
                    text = "" if value is None else str(value)
                    row[role] = text if text.strip() else ""
            yield row


def input_part(row: Row, role: str) -> Any:
    """Give what the model is given of a role; of messages, all before the last turn of the assistant."""
    if role != "messages":
        return row[role]
    last = max(i for i, message in enumerate(row[role]) if message["role"] == "assistant")
    return row[role][:last]


def split_off(train: Survey) -> tuple[Survey, Survey]:
    """Make a split to judge on of train: the tenth of the distinct inputs whose hashes are smallest.

    So the order of the rows does not matter, and rows with equal inputs stay together. A label never goes to it
    whole: its rows then stay in train.

    Returns:
        What stays in train, and the split.

    Raises:
        SourceError: If there are too few distinct rows.
    """
    distinct = sorted(set(train.inputs))
    chosen = set(distinct[: math.ceil(HELD_OUT_SHARE * len(distinct))]) if len(distinct) > 1 else set()
    if train.labels:
        staying = {label for label, key in zip(train.labels, train.inputs, strict=True) if key not in chosen}
        chosen -= {key for label, key in zip(train.labels, train.inputs, strict=True) if label not in staying}
    if not chosen:
        raise SourceError(
            f"data: train has {len(distinct)} distinct inputs, too few to make a validation split of; "
            "add a validation file"
        )
    left = [i for i, key in enumerate(train.inputs) if key not in chosen]
    return train.take(left), train.take([i for i, key in enumerate(train.inputs) if key in chosen])


def choose_rows(survey: Survey, count: int, *, seed: int) -> Survey:
    """Choose at most `count` rows, in an order that only their content and the seed decide."""
    seen: Counter[bytes] = Counter()
    order = []
    for i, content in enumerate(survey.contents):
        # Equal rows are told apart by their number, so that they do not lie side by side.
        order.append((_hash([seed, content.hex(), seen[content]]), i))
        seen[content] += 1
    return survey.take([i for _, i in sorted(order)[:count]])


def name_labels(train: Survey) -> tuple[dict[str, int], tuple[str, ...]]:
    """Number the labels and name them.

    Whole numbers count in their order, other labels in the alphabet's, a ClassLabel column in its own. Names come from
    `label_text` where each label has one name and each name one label.

    Returns:
        Label -> index, and the names by index.

    Raises:
        SourceError: If there is only one label.
    """
    found = set(train.labels)
    whole = all(re.fullmatch(r"-?\d+", label) for label in found)
    labels = train.class_names or tuple(sorted(found, key=int) if whole else sorted(found))
    if len(found) < 2:
        raise SourceError(f"data: train has only the label {labels[0]!r}; there is nothing to tell apart")
    texts = [train.label_texts.get(label, frozenset({label})) for label in labels]
    named = all(len(text) == 1 for text in texts) and len(frozenset().union(*texts)) == len(labels)
    names = tuple(next(iter(text)) for text in texts) if named else labels
    return {label: index for index, label in enumerate(labels)}, names


def show_rows(numbers: Sequence[int]) -> str:
    """Write row numbers for a message; rows count from 1, a header not included.

    >>> show_rows([3]), show_rows(range(1, 9))
    ('row 3 has', '8 rows (1, 2, 3, 4, 5, ...) have')
    """
    if len(numbers) == 1:
        return f"row {numbers[0]} has"
    listed = ", ".join(str(number) for number in numbers[:5]) + (", ..." if len(numbers) > 5 else "")
    return f"{len(numbers)} rows ({listed}) have"


def _hash(value: Any) -> bytes:
    return hashlib.blake2b(canonical_json(value).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _class_names(rows: Any, columns: Mapping[str, str]) -> tuple[str, ...]:
    feature = rows.features[columns["label"]] if "label" in columns else None
    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()


def _label(value: Any, class_names: tuple[str, ...], column: str) -> str:
    """Give a label as text; empty where there is none (a ClassLabel writes that as -1)."""
    if value is None or (isinstance(value, str) and not value.strip()) or value != value:  # NaN is no label
        return ""
    if class_names:
        return class_names[value] if 0 <= value < len(class_names) else ""
    if isinstance(value, str | bool | int):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    raise SourceError(f"data: {value!r} in column {column!r} is no class; give one name or whole number a row")


def _messages(value: Any) -> list[dict[str, str]]:
    """Give a conversation; empty where it is of no use: not all text, or no turn of the assistant."""
    turns = value if isinstance(value, list) else []
    usable = all(
        isinstance(t, dict) and isinstance(t.get("role"), str) and isinstance(t.get("content"), str) for t in turns
    )
    if not usable or not any(t["role"] == "assistant" and t["content"].strip() for t in turns):
        return []
    return [{"role": t["role"], "content": t["content"]} for t in turns]
