"""How many tokens of the train batches are padding: rows at random in a batch, and rows of like length.

The rows are those that a search with the defaults trains on; a folder with data and one with a model may be given.

    python benchmarks/padding.py
    python benchmarks/padding.py --data DATA --model MODEL
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from results import write_rows

from autopeft.assembly import assemble
from autopeft.candidates import Recipe
from autopeft.request_fields import make_request
from autopeft.space_file import read_space


def lengths_at_random(lengths: Any, rows: int, *, seed: int) -> Iterator[Any]:
    """Give the lengths of the rows of each batch of a pass in which length plays no part."""
    order = np.random.default_rng([seed, 0]).permutation(len(lengths))
    for start in range(0, len(order) - rows + 1, rows):
        yield lengths[order[start : start + rows]]


def lengths_by_length(data: Any, rows: int, *, seed: int) -> Iterator[Any]:
    """Give the same of the batches that candidates are trained on."""
    from autopeft.trial.batches import train_parts

    for step in range(data.train.num_rows // rows):
        (batch,) = train_parts(data, step, recipe=Recipe(0.0, batch_size=rows), seed=seed)
        yield batch["attention_mask"].sum(1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "padding.csv")
    args = parser.parse_args()
    fields = {name: str(path) for name, path in (("data", args.data), ("model", args.model)) if path}
    data = assemble(make_request({**fields, "trials": 1}), space=read_space("default")).data
    assert data is not None
    lengths = np.array([len(row) for row in data.train["input_ids"].to_pylist()])
    for rows in args.batch_sizes:
        of = {
            "at random": list(lengths_at_random(lengths, rows, seed=0)),
            "by length": list(lengths_by_length(data, rows, seed=0)),
        }
        for order, batches in of.items():
            tokens, taken = (
                sum(int(batch.sum()) for batch in batches),
                sum(rows * int(batch.max()) for batch in batches),
            )
            row = {
                "data": args.data.name if args.data else "docstrings",
                "rows": len(lengths),
                "batch_size": rows,
                "order": order,
                "tokens_with_padding": taken,
                "padding": round(1 - tokens / taken, 4),
                "longest": max(int(batch.max()) for batch in batches),
            }
            print(row)
            write_rows(args.out, [row])


if __name__ == "__main__":
    main()
