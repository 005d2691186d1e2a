"""Prepared data: the tokens that a search trains and judges on, the same for every worker; Parquet and one card.

Workers read only this, no user's file; the tokenizer only to write out what a model generated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from autopeft.anatomy import Task
from autopeft.errors import DamagedRunError, SourceError
from autopeft.records import SCHEMA_VERSION
from autopeft.work import Split

IGNORED = -100
"""The label of a token that is not trained on, as PyTorch's cross entropy has it."""

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Prepared:
    """Tokens of the rows that a search reads, and what was done to get them.

    A table has the columns `row` (number in the split as found, from 1), `input_ids`, then for text-classification
    `label` and maybe `token_type_ids`, for causal-lm and seq2seq-lm `labels` and `answer_bytes`. Where the metric
    judges generated text, held-out splits have `reference`: the text of the answer, null for rows not to be judged so.

    Attributes:
        name: What the user called the data.
        test: None where there is none.
        label_names: Names of the classes by index; empty for texts.
        pad_id: What batches are padded with; the attention mask hides it.
        max_length: Tokens a row was cut to.
        rows_found: Rows a split had before rows were chosen.
        notes: Sentences for the user: everything that was decided or changed on the way.
        fingerprint: SHA-256 of the tables and the label names.
        closing: Tokens that end a text or source (SEP, EOS) and stay when it is cut; None where rows are pairs
            of texts, of which only the tokenizer can tell what to cut.
    """

    name: str
    task: Task
    train: pa.Table
    validation: pa.Table
    test: pa.Table | None
    label_names: tuple[str, ...]
    pad_id: int
    max_length: int
    rows_found: Mapping[str, int]
    notes: tuple[str, ...]
    fingerprint: str
    closing: int | None = 0

    def tables(self) -> dict[str, pa.Table]:
        """Give the splits that there are, by name."""
        return {name: table for name in _SPLITS if (table := getattr(self, name)) is not None}

    def split(self, name: Split) -> pa.Table:
        """Give a split to judge on.

        Raises:
            SourceError: If there is none of that name.
        """
        tables = self.tables()
        if name not in tables:
            raise SourceError(f"data: {self.name} has no {name} split; add one, or judge on {', '.join(tables)}")
        return tables[name]

    @property
    def longest(self) -> int:
        """Tokens of the longest row to train on, its target included where that is apart."""
        sides = [name for name in ("input_ids", "labels") if name in self.train.column_names]
        return max(pc.max(pc.list_value_length(self.train[name])).as_py() for name in sides)

    def card(self) -> dict[str, Any]:
        """Give everything but the rows, as plain values."""
        return {
            "schema": SCHEMA_VERSION,
            "name": self.name,
            "task": self.task,
            "label_names": list(self.label_names),
            "pad_id": self.pad_id,
            "max_length": self.max_length,
            "longest": self.longest,
            "rows_found": dict(self.rows_found),
            "rows": {name: table.num_rows for name, table in self.tables().items()},
            "notes": list(self.notes),
            "fingerprint": self.fingerprint,
            "closing": self.closing,
        }


def fingerprint(tables: Mapping[str, pa.Table], label_names: tuple[str, ...]) -> str:
    """Give the SHA-256 of the values of tables, however these are chunked in memory."""
    sha = hashlib.sha256(json.dumps(label_names).encode())
    for name, table in tables.items():
        for column in table.column_names:
            values = pa.concat_arrays(table[column].chunks)
            sha.update(f"\n{name}.{column}\n".encode())
            if pa.types.is_string(values.type):
                sha.update(json.dumps(values.to_pylist()).encode())
                continue
            if pa.types.is_list(values.type):
                sha.update(pc.list_value_length(values).to_numpy(zero_copy_only=False).tobytes())
                values = values.flatten()
            sha.update(values.to_numpy(zero_copy_only=False).tobytes())
    return sha.hexdigest()


def frequent_tokens(table: pa.Table, *, most: int = 1024) -> tuple[int, ...]:
    """Give the tokens of a table's texts, the most frequent first, of equally frequent ones the smaller first."""
    counts = pc.value_counts(pc.list_flatten(table["input_ids"])).to_pylist()
    return tuple(c["values"] for c in sorted(counts, key=lambda c: (-c["counts"], c["values"]))[:most])


def write(prepared: Prepared, folder: Path) -> None:
    """Write the splits as Parquet and the card as `data.json`, which comes last: with it the data is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in prepared.tables().items():
        pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
    (folder / "data.json").write_text(json.dumps(prepared.card(), indent=2, ensure_ascii=False), encoding="utf-8")


def read_prepared(folder: Path) -> Prepared:
    """Read what `write` wrote, and check that it is what was written.

    Raises:
        DamagedRunError: If a file is missing or unreadable, or the fingerprint is another.
    """
    try:
        card = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        tables = {name: pq.read_table(folder / f"{name}.parquet") for name in card["rows"]}
        prepared = Prepared(
            name=card["name"],
            task=card["task"],
            train=tables["train"],
            validation=tables["validation"],
            test=tables.get("test"),
            label_names=tuple(card["label_names"]),
            pad_id=card["pad_id"],
            max_length=card["max_length"],
            rows_found=card["rows_found"],
            notes=tuple(card["notes"]),
            fingerprint=card["fingerprint"],
            closing=card["closing"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedRunError(
            f"data: {folder} cannot be read ({error}); start the search anew in another --out"
        ) from error
    if card["schema"] != SCHEMA_VERSION:
        raise DamagedRunError(f"data: {folder} is of schema {card['schema']}, this autopeft reads {SCHEMA_VERSION}")
    seen = fingerprint(prepared.tables(), prepared.label_names)
    if seen != prepared.fingerprint:
        raise DamagedRunError(
            f"data: {folder} holds other tokens than were prepared (fingerprint {seen[:12]}, not "
            f"{prepared.fingerprint[:12]}); start the search anew in another --out"
        )
    return prepared
