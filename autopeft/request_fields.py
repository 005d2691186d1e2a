"""The fields of a request on their way: read from YAML, given defaults, checked all at once, written down."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from autopeft.errors import RequestError
from autopeft.objectives import OBJECTIVES
from autopeft.registry import unknown
from autopeft.request import SearchRequest
from autopeft.yaml_file import read_yaml

_TRIALS = 24
"""Trials of a search without any limit: enough for every hand-made configuration and as many again."""

_LIMITS = ("trials", "time", "steps_total", "until_converged")
_DEMO = {"steps": 60, "batch_size": 16, "max_length": 32, "eval_rows": 300, "trials": 48, "time": "150s"}
_UNION_PARTS = ("str", "int", "float", "constrained-int", "constrained-float")


def make_request(fields: Mapping[str, Any], *, own_objectives: tuple[str, ...] = ()) -> SearchRequest:
    """Check the fields of a request, all at once.

    Args:
        fields: Field name -> value; a None means the default.
        own_objectives: Names of objectives that the caller brings along.

    Raises:
        RequestError: Listing every fault as "field: value and remedy".
    """
    given = {k: v for k, v in fields.items() if v is not None}
    if not any(name in given for name in _LIMITS):
        given["trials"] = _TRIALS
    faults: list[str] = []
    for name in [name for name in given if name not in SearchRequest.model_fields]:
        faults.append(str(unknown(name, SearchRequest.model_fields, what="field")))
        del given[name]
    objectives = given.get("objectives")
    for name in objectives if isinstance(objectives, list | tuple) else ():
        if callable(name):
            faults.append(f"objectives: {name!r} has no goal; decorate it with @autopeft.objective(goal=...)")
        elif name not in OBJECTIVES and name not in own_objectives:
            faults.append(f"objectives: {unknown(name, {*OBJECTIVES, *own_objectives}, what='objective')}")
    request = None
    try:
        request = SearchRequest(**given)
    except ValidationError as error:
        for fault in error.errors():
            where = ".".join(str(part) for part in fault["loc"] if part not in _UNION_PARTS)
            what = fault["msg"].removeprefix("Value error, ")
            if where:
                shown = "" if what.startswith(repr(fault["input"])) else f"{fault['input']!r}: "
                what = f"{where}: {shown}{what}"
            faults.extend(w for w in what.splitlines() if w not in faults)
    if faults or request is None:
        raise RequestError(*faults)
    return request


def demo_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Give the defaults of the embedded model and data, which end in a few minutes on two cores; else none."""
    if fields.get("model") is not None or fields.get("data") is not None:
        return {}
    # Who sets one limit does not want another one beside it.
    limited = {name for name in _LIMITS if fields.get(name) is not None}
    return {k: v for k, v in _DEMO.items() if k not in _LIMITS or limited <= {k}}


def read_fields(path: Path) -> dict[str, Any]:
    """Read the fields of a request from YAML, unchecked.

    Raises:
        RequestError: If the file is not there, or is not a YAML mapping.
    """
    fields = read_yaml(path, field="config")
    fields = {} if fields is None else fields
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise RequestError(f"config: {path} holds {type(fields).__name__}, not a mapping of field names to values")
    return fields


def write_request(request: SearchRequest, path: Path) -> None:
    """Write every field of a request as YAML."""
    path.write_text(yaml.safe_dump(request.model_dump(), sort_keys=False, allow_unicode=True), encoding="utf-8")
