"""Reads what a request names: the tokenizer, the data and the anatomy of the model, checked against the space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.anatomy import Anatomy
from autopeft.domains import Ordinal, ends
from autopeft.errors import RequestError
from autopeft.methods import METHODS
from autopeft.recipe import holds
from autopeft.request import SearchRequest
from autopeft.space import Space

if TYPE_CHECKING:
    from autopeft.trial.prepared import Prepared


def read_sources(request: SearchRequest, space: Space) -> tuple[dict[str, Any], Anatomy, Prepared]:
    """Read tokenizer, data and anatomy; gives (what the model is, anatomy, prepared data)."""
    # Heavy, and of no use to a custom runner.
    from autopeft.trial.data import prepare
    from autopeft.trial.demo import demo_model
    from autopeft.trial.device import cuda_available
    from autopeft.trial.model import (
        ModelSource,
        answering_task,
        check_trains,
        check_weights,
        load_tokenizer,
        position_limit,
    )
    from autopeft.trial.prepared import frequent_tokens
    from autopeft.trial.reading import read_anatomy

    path = request.model or str(demo_model())
    if Path(path).expanduser().is_dir():
        path = str(Path(path).expanduser().resolve())  # it must mean the same from any other folder
    tokenizer = load_tokenizer(path)
    positions = position_limit(path)
    check_weights(path)
    room = None if positions is None else positions - _most_virtual_tokens(space)
    rows = max(_values("batch_size", request, space), default=request.batch_size)
    answering = answering_task(path)
    prepared = prepare(request, tokenizer, task=request.task, answering=answering, max_positions=room, batch_size=rows)
    _check_lengths(prepared, [v for v in _values("max_length", request, space) if v < prepared.max_length])
    source = ModelSource(path, prepared.task, prepared.label_names, tokenizer.pad_token_id or 0)
    check_trains(
        source,
        packed=prepared.task == "causal-lm" and True in _values("packing", request, space),
        checkpointed=True in _values("gradient_checkpointing", request, space),
    )
    anatomy = read_anatomy(source).on_data(frequent_tokens(prepared.train))
    model = {
        "name": path,
        "checkpoint_bits": anatomy.dtype_bits,
        "cuda": cuda_available() or bool(request.gpus_per_worker),  # of a cluster, if not of this machine
        "source": asdict(source),
    }
    return model, anatomy, prepared


def _values(name: str, request: SearchRequest, space: Space) -> list[Any]:
    """Give every value that a dimension of training can have in a search; of a range, its ends."""
    found = [ends(p.domain) for p in space if p.name == name]
    # Others are refused with all that is wrong in the space, when it is bound to the model.
    return [v for v in found[0] if holds(name, v)] if found else [getattr(request, name)]


def _most_virtual_tokens(space: Space) -> int:
    """Give the most tokens that a prompt of the space puts before a text: they take positions of the model too."""
    # A hybrid's parts have tokens too.
    names = {f"{name}.tokens" for name, method in METHODS.items() if method.takes_positions}
    domains = [p.domain for p in space if p.name in names or p.name.endswith(".prompt.tokens")]
    return int(max((v for d in domains if isinstance(d, Ordinal) for v in d.values), default=0))


def _check_lengths(prepared: Prepared, lengths: Sequence[int]) -> None:
    """Make sure that the rows can be cut to the lengths of a space."""
    from autopeft.trial.batches import rows_left_empty

    if lengths and prepared.closing is None:
        raise RequestError(
            "space: max_length: rows of two texts are cut once, by the tokenizer; drop it, and give --max-length"
        )
    for length in lengths:
        if empty := rows_left_empty(prepared, length):
            raise RequestError(
                f"space: max_length: at {length} tokens the prompt fills {len(empty)} of the "
                f"{prepared.train.num_rows} train rows, the first row {min(empty)}; start from a larger one"
            )
