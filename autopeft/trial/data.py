"""From the request to prepared data: read, understand the columns, choose rows, tokenise once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from autopeft.anatomy import Task
from autopeft.errors import SourceError
from autopeft.objectives import METRICS
from autopeft.request import SearchRequest
from autopeft.trial.columns import Layout, find_layout
from autopeft.trial.demo import read_docstrings
from autopeft.trial.prepared import IGNORED, Prepared, fingerprint
from autopeft.trial.rows import Source, read_source
from autopeft.trial.selection import (
    FEWEST_TO_TEST,
    NoLabelsError,
    Row,
    Survey,
    choose_rows,
    name_labels,
    read_rows,
    show_rows,
    split_off,
    survey_rows,
)
from autopeft.trial.targets import encode_targets
from autopeft.trial.token_cache import tokens_of
from autopeft.trial.tokens import closing_tokens, encode_answers, encode_classes

_TRAINED_ON: Mapping[tuple[str, ...], str] = {
    ("messages",): "the turns of the assistant, rendered by the chat template",
    ("text",): "the whole text and EOS",
}
_TRAINED_ON_ANSWER = "the answer and EOS, a line break between prompt and answer where there is no white space"


def prepare(
    request: SearchRequest,
    tokenizer: Any,
    *,
    task: str = "auto",
    answering: Task = "causal-lm",
    max_positions: int | None,
    batch_size: int | None = None,
) -> Prepared:
    """Read the data of a request and tokenise what a search reads of it.

    Train rows are at most ``steps * batch_size``, validation rows `eval_rows`, test rows twice that; which ones, is
    decided by their content and the seed.

    Args:
        tokenizer: The model's tokenizer, of transformers.
        task: What to learn; "auto" decides by the columns. `Prepared.task` says what was decided.
        answering: The task for which "auto" takes texts with answers; the model settles it.
        max_positions: Tokens the model can take; None for no limit.
        batch_size: The largest of any candidate; by default the request's.

    Raises:
        SourceError: If the data cannot be read or trained on; the message names what and where.
    """
    source = read_docstrings() if request.data is None else read_source(request.data)
    layout, columns = find_layout(
        source.splits["train"].column_names, task=task, columns=request.columns, answering=answering
    )
    surveys, notes = _survey(source, layout, columns)
    notes = [_reading_note(source, layout, columns), *notes]
    label_ids: dict[str, int] = {}
    label_names: tuple[str, ...] = ()
    if layout.task == "text-classification":
        label_ids, label_names = name_labels(surveys["train"])
        _check_labels(surveys)
    notes += _overlap_notes(surveys)
    judged = _rows_to_generate(request, layout)

    max_length = _max_length(request.max_length, max_positions, tokenizer)
    if max_length < request.max_length:
        notes.append(f"max_length {request.max_length} was reduced to {max_length}, which is what the model can take.")
    wanted = {
        "train": request.steps * (batch_size or request.batch_size),
        "validation": request.eval_rows,
        "test": request.eval_rows * 2,
    }
    tables = {}
    for split, survey in surveys.items():
        chosen = choose_rows(survey, wanted[split], seed=request.seed)
        rows = list(read_rows(chosen.rows, chosen.positions, layout, columns, chosen.class_names))
        numbers = [position + 1 for position in chosen.positions]
        said: dict[str, Any] = {
            "label_ids": label_ids,
            "max_length": max_length,
            "references": judged if split != "train" else 0,
        }
        encode = partial(_encode, rows, numbers, tokenizer, layout=layout, **said)
        table = tokens_of(encode, tokenizer, rows, numbers, asdict(layout), said)
        _check_trained(split, table, max_length)
        tables[split] = table
    notes += _length_notes(tables, layout.task, max_length)
    if judged:
        texts = {s: t.num_rows - t["reference"].null_count for s, t in tables.items() if s != "train"}
        shares = " and ".join(f"{count} of {tables[split].num_rows} {split} rows" for split, count in texts.items())
        notes.append(
            f"{request.metric} is of the text generated greedily for {shares} (--generate-rows {judged}), each at most "
            "as long as the longest answer among them."
        )
    return Prepared(
        name=source.name,
        task=layout.task,
        train=tables["train"],
        validation=tables["validation"],
        test=tables.get("test"),
        label_names=label_names,
        pad_id=_pad_id(tokenizer),
        max_length=max_length,
        rows_found={split: len(survey) for split, survey in surveys.items()},
        notes=tuple(notes),
        fingerprint=fingerprint(tables, label_names),
        closing=_closing(layout, columns, tokenizer),
    )


def _encode(
    rows: Sequence[Row],
    numbers: Sequence[int],
    tokenizer: Any,
    *,
    layout: Layout,
    label_ids: Mapping[str, int],
    max_length: int,
    references: int,
) -> pa.Table:
    """Tokenise rows as their layout says."""
    if layout.task == "text-classification":
        return encode_classes(rows, numbers, tokenizer, label_ids=label_ids, max_length=max_length)
    encode = encode_targets if layout.task == "seq2seq-lm" else encode_answers
    return encode(rows, numbers, tokenizer, layout=layout, max_length=max_length, references=references)


def _survey(source: Source, layout: Layout, columns: Mapping[str, str]) -> tuple[dict[str, Survey], list[str]]:
    """Look at every split, and make those to judge on that there are not."""
    notes = []
    surveys = {
        name: survey_rows(name, source.splits[name], layout, columns)
        for name in ("train", "validation")
        if name in source.splits
    }
    if "test" in source.splits:
        try:
            surveys["test"] = survey_rows("test", source.splits["test"], layout, columns)
        except NoLabelsError:
            notes.append("The test split has no labels and is not used.")
    for name in ("validation", "test"):
        train = surveys["train"]
        if name in surveys:
            continue
        if name == "test" and len(set(train.inputs)) < FEWEST_TO_TEST:
            notes.append("There is no test split, and train is too small to make one of: nothing is judged on one.")
            continue
        surveys["train"], surveys[name] = split_off(train)
        notes.append(
            f"There is no {name} split: {len(surveys[name])} of the {len(train)} train rows became one, chosen by a "
            "hash of their text; rows with equal inputs were kept together."
        )
    return {name: surveys[name] for name in ("train", "validation", "test") if name in surveys}, notes


def _reading_note(source: Source, layout: Layout, columns: Mapping[str, str]) -> str:
    used = ", ".join(role if role == column else f"{role} from {column}" for role, column in columns.items())
    unused = [name for name in source.splits["train"].column_names if name not in columns.values()]
    note = f"{source.name} is read as {layout.task}: {used}"
    if unused:
        note += f"; not used: {', '.join(unused)}"
    if layout.task == "causal-lm":
        note += "; trained on " + _TRAINED_ON.get(layout.roles, _TRAINED_ON_ANSWER)
    if layout.task == "seq2seq-lm":
        note += "; trained on the " + ("last turn of the assistant" if "messages" in layout.roles else "target")
        note += " and EOS, all before it is the source"
    return note + "."


def _rows_to_generate(request: SearchRequest, layout: Layout) -> int:
    """Give the most rows of a split to generate an answer for; 0 where the metric needs none."""
    metric = None if request.metric is None else METRICS[request.metric]
    if metric is None or not metric.generated or layout.task not in metric.tasks:
        return 0  # a metric that is not for the task is refused when both are known
    if layout.roles == ("text",):
        fitting = ", ".join(m.name for m in METRICS.values() if layout.task in m.tasks and not m.generated)
        raise SourceError(
            f"metric: {metric.name} judges answers, and a text alone has no prompt to answer; give data with prompt "
            f"and completion, or choose one of {fitting}"
        )
    return request.generate_rows


def _length_notes(tables: Mapping[str, pa.Table], task: Task, max_length: int) -> list[str]:
    """Say which rows may be cut; of an encoder-decoder, on which side."""
    sides = {"input_ids": " of source", "labels": " of target"} if task == "seq2seq-lm" else {"input_ids": ""}
    notes = []
    for column, side in sides.items():
        full = {s: pc.sum(pc.equal(pc.list_value_length(t[column]), max_length)).as_py() for s, t in tables.items()}
        shares = ", ".join(
            f"{count} of {tables[split].num_rows} {split} rows" for split, count in full.items() if count
        )
        if shares:
            notes.append(
                f"{shares} have the full {max_length} tokens{side} and may be cut; raise --max-length to keep them "
                "whole."
            )
    return notes


def _check_labels(surveys: Mapping[str, Survey]) -> None:
    known = set(surveys["train"].labels)
    for split, survey in surveys.items():
        at: dict[str, list[int]] = {}
        for label, position in zip(survey.labels, survey.positions, strict=True):
            if label not in known:
                at.setdefault(label, []).append(position + 1)
        if at:
            rows = show_rows(sorted(number for numbers in at.values() for number in numbers))
            raise SourceError(
                f"data: {split}: {rows} a label that train never has: {', '.join(sorted(at)[:8])}; "
                "add such rows to train, or remove these"
            )


def _overlap_notes(surveys: Mapping[str, Survey]) -> list[str]:
    known, notes = set(surveys["train"].inputs), []
    for split in ("validation", "test"):
        shared = sum(key in known for key in surveys[split].inputs) if split in surveys else 0
        if shared:
            notes.append(f"{shared} of {len(surveys[split])} {split} rows have an input that train has too.")
    return notes


def _check_trained(split: str, table: pa.Table, max_length: int) -> None:
    """Refuse rows with nothing to learn from."""
    if "labels" in table.column_names:
        empty = [all(label == IGNORED for label in labels.as_py()) for labels in table["labels"]]
    else:
        empty = [length.as_py() == 0 for length in pc.list_value_length(table["input_ids"])]
    numbers: Sequence[int] = sorted(row.as_py() for row, none in zip(table["row"], empty, strict=True) if none)
    if numbers:
        raise SourceError(
            f"data: {split}: of the {table.num_rows} rows chosen, {show_rows(numbers)} no token to train on: the "
            f"answer is empty, or the prompt fills max_length {max_length}; raise --max-length, shorten the prompt, "
            "or remove the row"
        )


def _max_length(wanted: int, max_positions: int | None, tokenizer: Any) -> int:
    # The tokenizer's own limit counts too: RoBERTa has 514 positions and takes 512 tokens. Without one it is 1e30.
    return min(n for n in (wanted, max_positions, int(tokenizer.model_max_length)) if n)


def _pad_id(tokenizer: Any) -> int:
    return int(next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None))


def _closing(layout: Layout, columns: Mapping[str, str], tokenizer: Any) -> int | None:
    if layout.task == "causal-lm" or "messages" in layout.roles:
        return 0  # a cut answer has no end to say, and a template puts none after a conversation
    return None if "text_pair" in columns else closing_tokens(tokenizer)
