"""Every trial in a table that sorts and filters; the failed ones with their reasons and tracebacks."""

from __future__ import annotations

from typing import Any

from autopeft.labels import describe, show_rate
from autopeft.records import TrialRecord
from autopeft.report.context import Context, Section, embed, fill
from autopeft.report.words import bits_of, method_of
from autopeft.units import show_bytes, show_seconds

_REASON_LENGTH = 500
_TRACEBACK_LENGTH = 6_000  # the last lines say most
_TRACEBACKS_LENGTH = 1_500_000  # of all together: a search in which everything fails must not swell the file


def trials(context: Context) -> Section:
    """Give the table's data; the script of the page builds the rows that are looked at."""
    html = fill("trials.html.j2", data=embed(table(context)), n=len(context.records), context=context)
    return Section("All trials", html)


def table(context: Context) -> dict[str, Any]:
    """Give the trials by columns: numbers to sort by, texts to show, and the candidates' values.

    A column is {"title", "values", "texts" (absent: the values themselves), "align"}. Of all the names in a space a
    candidate has few, so its values are by the index of the name: {"names": [...], "values": [{"3": 8}, ...]}.
    """
    records = context.records
    on = {record.number for record in context.front}
    columns = [
        _column("trial", [r.number for r in records], align="right"),
        _column("state", [r.state for r in records]),
        _column("pick", [", ".join(context.picks_of(r.number)) for r in records]),
        _column("configuration", [describe(r) for r in records]),
        *(
            _column(context.title_of(o), [r.values.get(o.name) for r in records], [context.show(o, r) for r in records])
            for o in context.objectives
        ),
        *_predicted(context),
        _column("learning rate", [r.plan.learning_rate if r.plan else None for r in records], [*map(_rate, records)]),
        _column("time", [r.seconds for r in records], [show_seconds(r.seconds) for r in records]),
        _column("bits", [bits_of(r) for r in records], align="right"),
        _column("reason", [_short(r.reason, _REASON_LENGTH) for r in records]),
    ]
    names = {name: i for i, name in enumerate(dict.fromkeys(name for r in records for name in r.candidate.values))}
    tracebacks, which = _tracebacks(records)
    return {
        "columns": columns,
        "front": [r.number in on for r in records],
        "methods": [method_of(r) for r in records],
        "names": list(names),
        "values": [{str(names[name]): value for name, value in r.candidate.values.items()} for r in records],
        "tracebacks": tracebacks,
        "traceback": which,
    }


def _predicted(context: Context) -> list[dict[str, Any]]:
    """Give what memory was predicted before training, where it was."""
    predicted = [r.cost.memory_bytes if r.cost else 0 for r in context.records]
    if not any(predicted):
        return []
    return [
        _column("predicted memory", [p or None for p in predicted], [show_bytes(p) if p else "" for p in predicted])
    ]


def _column(title: str, values: list[Any], texts: list[str] | None = None, *, align: str = "left") -> dict[str, Any]:
    column = {"title": title, "values": values, "align": "right" if texts else align}
    return column | ({"texts": texts} if texts else {})


def _rate(record: TrialRecord) -> str:
    return show_rate(record.plan.learning_rate) if record.plan else ""


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _tracebacks(records: Any) -> tuple[list[str], list[int | None]]:
    """Keep each different traceback once, as long as there is room: (texts, record -> index of its text)."""
    texts: dict[str, int] = {}
    which: list[int | None] = []
    room = _TRACEBACKS_LENGTH
    for record in records:
        text = record.traceback[-_TRACEBACK_LENGTH:]
        if text and text not in texts:
            if len(text) > room:
                text = "Left out here for its length; records.jsonl in the run directory holds it."
            room -= len(text) if text not in texts else 0
            texts.setdefault(text, len(texts))
        which.append(texts[text] if text else None)
    return list(texts), which
