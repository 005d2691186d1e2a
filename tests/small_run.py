"""A run directory made by hand: small models without a head, a few rows of tokens, and workers on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import transformers
from families import AUTO_CLASSES, CONFIGS, LABELS, TOKENS

from autopeft.anatomy import Anatomy
from autopeft.candidates import Candidate, Recipe
from autopeft.plans import plan_of
from autopeft.trial.model import ModelSource
from autopeft.trial.prepared import Prepared, fingerprint, write
from autopeft.trial.reading import read_anatomy
from autopeft.trial.worker import TrialWorker
from autopeft.work import WorkUnit

METRIC = {"text-classification": "accuracy", "causal-lm": "loss", "seq2seq-lm": "loss"}


def pretrained(family: str, task: str, folder: Path) -> ModelSource:
    """Write a model as pretraining leaves it: for classification it has no head yet."""
    torch.manual_seed(7)
    auto = transformers.AutoModel if task == "text-classification" else AUTO_CLASSES[task]
    auto.from_config(CONFIGS[family]()).save_pretrained(folder)
    return ModelSource(str(folder), task, LABELS if task == "text-classification" else ())  # type: ignore[arg-type]


def make_data(task: str, *, train: int = 24, held_out: int = 12, seed: int = 0, long: int = 14) -> Prepared:
    """Make rows of several lengths whose class, or whose next token, can be told from their tokens."""
    generator = torch.Generator().manual_seed(seed)

    def table(rows: int) -> pa.Table:
        columns: dict[str, list[Any]] = {"row": [], "input_ids": []}
        for i in range(rows):
            length = 5 + (i * 3) % (long - 4)
            start = int(torch.randint(0, len(LABELS), (1,), generator=generator))
            tokens = [3 + (start * 7 + k) % 40 for k in range(length - 1)]
            ids = [*tokens, 1]  # T5's classifier looks for the end of the text
            columns["row"].append(i + 1)
            columns["input_ids"].append(ids)
            if task == "text-classification":
                columns.setdefault("label", []).append(start)
            else:
                said = [-100, -100, *ids[2:]] if task == "causal-lm" else [*ids[2:-1:2], 1]
                columns.setdefault("labels", []).append(said)
                columns.setdefault("answer_bytes", []).append(length)
        return pa.table(columns)

    tables = {"train": table(train), "validation": table(held_out), "test": table(held_out)}
    labels = LABELS if task == "text-classification" else ()
    return Prepared(
        name="rows",
        task=task,  # type: ignore[arg-type]
        train=tables["train"],
        validation=tables["validation"],
        test=tables["test"],
        label_names=labels,
        pad_id=0,
        max_length=long,
        rows_found={name: t.num_rows for name, t in tables.items()},
        notes=(),
        fingerprint=fingerprint(tables, labels),
    )


def make_run_dir(folder: Path, task: str, **options: Any) -> Path:
    """Write the prepared data of a run."""
    write(make_data(task, **options), folder / "data")
    (folder / "request.yaml").write_text("{}\n")
    return folder


def make_worker(run_dir: Path, source: ModelSource, anatomy: Anatomy, **changes: Any) -> TrialWorker:
    settings: dict[str, Any] = {
        "run_dir": str(run_dir),
        "source": asdict(source),
        "head": dict(anatomy.head),
        "metric": METRIC[source.task],
        "head_seed": 0,
        "device": "cpu",
        "threads": 1,
    }
    return TrialWorker(**{**settings, **changes})


def make_unit(anatomy: Anatomy, values: dict[str, Any], *, trial: int = 0, steps: int = 6, **changes: Any) -> WorkUnit:
    candidate = Candidate({"bits": 32, **values})
    plan = plan_of(candidate, anatomy, recipe=Recipe(0.0, batch_size=4))
    fields = {"seed": 0, "plan": plan, "head_params": anatomy.head_params, **changes}
    return WorkUnit(trial=trial, candidate=candidate, steps=steps, **fields)


def make_settings(
    folder: Callable[[str], Path], tasks: Mapping[str, str]
) -> dict[str, tuple[Path, ModelSource, Anatomy]]:
    """Give what workers are made of: family -> (run directory, source, anatomy).

    Args:
        folder: Makes a new folder of a name.
        tasks: Family -> task.
    """
    made = {}
    for family, task in tasks.items():
        source = pretrained(family, task, folder(family))
        anatomy = read_anatomy(source).on_data(TOKENS)
        made[family] = (make_run_dir(folder(f"run-{family}"), task), source, anatomy)
    return made
