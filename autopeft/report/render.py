"""Renders the report: SECTIONS, one after the other, in a page that loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files

from markupsafe import Markup

from autopeft.objectives import Objective
from autopeft.records import RunInfo, TrialRecord
from autopeft.registry import Table
from autopeft.report.answer import answer
from autopeft.report.context import Context, Section, fill
from autopeft.report.finalists import finalists
from autopeft.report.front import front
from autopeft.report.history import history
from autopeft.report.layers import layers
from autopeft.report.measured import measured
from autopeft.report.trials import trials
from autopeft.report.usage import usage

SECTIONS: Table[Callable[[Context], Section]] = Table(
    {
        "answer": answer,
        "finalists": finalists,
        "front": front,
        "layers": layers,
        "usage": usage,
        "history": history,
        "trials": trials,
        "measured": measured,
    }
)
"""The parts of the report in their order: name (the anchor in the page) -> function."""


def render(
    info: RunInfo,
    records: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    *,
    title: str = "autopeft report",
    adapter_dirs: Mapping[int, str] | None = None,
    finals: Sequence[TrialRecord] = (),
) -> str:
    """Give the whole report as one HTML file that opens offline.

    Args:
        info: What was run.
        records: Every trial, in the order in which they ended.
        objectives: What was optimised, in order.
        title: Heading of the page.
        adapter_dirs: Trial number -> directory of its exported adapter, as the code in the report should name it.
        finals: What the finalists gave that were trained again.

    Raises:
        ValueError: If there is no objective, or a complete record holds a value that is not finite.
    """
    if not objectives:
        raise ValueError("a report needs at least one objective")
    context = Context(info, records, objectives, adapter_dirs or {}, finals)
    scripts = [_plotly(), _own("report.js")] if context.complete else [_own("report.js")]
    page = fill(
        "page.html.j2",
        title=title,
        context=context,
        sections={name: make(context) for name, make in SECTIONS.items()},
        style=Markup(_own("report.css")),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
    )
    # A path with undecodable bytes has lone surrogates, which no UTF-8 file can hold.
    return page.encode("utf-8", "replace").decode()


def _policy(scripts: Sequence[str]) -> str:
    """Forbid the page to load anything, and to run any script but these: even a tag that slipped through is inert."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{code}'" for code in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _own(name: str) -> str:
    return (files("autopeft.report") / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """Give plotly.js in a form that may stand inside <script>."""
    from plotly.offline import get_plotlyjs  # a second to import, and only a report needs it

    # A line end in another form would be changed by the browser, and then not match its hash.
    return get_plotlyjs().replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script")
