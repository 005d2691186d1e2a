"""What a person sees while a search runs: a live table on a terminal, one plain line an event anywhere else."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from autopeft.labels import describe, one_line, show_value
from autopeft.records import RunInfo, TrialRecord
from autopeft.units import parse_seconds, show_bytes, show_count, show_percent, show_seconds

FRONT_ROWS = 8
"""Rows of the front that the live view shows."""


class View(Protocol):
    """What the search tells whoever watches it; called from one thread."""

    def started(self, info: RunInfo, records: Sequence[TrialRecord], front: Sequence[TrialRecord]) -> None:
        """The search begins, or goes on with these records and their front."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def proposed(self, number: int, label: str) -> None:
        """A trial is on its way to a worker."""

    def finished(self, record: TrialRecord, front: Sequence[TrialRecord]) -> None:
        """A trial has ended; `front` is the front with it, best quality first."""

    def closed(self, summary: str) -> None:
        """The search has ended."""


class _Progress:
    """What both views know of a search: its objectives and limits, what has ended, what is running."""

    def __init__(self) -> None:
        self.objectives: Sequence[Mapping[str, str]] = ()
        self.running: dict[int, str] = {}
        self.ended: Counter[str] = Counter()
        self._paused: set[int] = set()
        self._began = time.monotonic()
        self._trials, self._seconds, self._at_once = 0, 0.0, 1
        self._durations: list[float] = []

    def start(self, info: RunInfo, records: Sequence[TrialRecord]) -> None:
        self.objectives = info.objectives
        self._began = time.monotonic()
        trials, seconds = info.request.get("trials"), info.request.get("time")
        self._trials = int(trials) if trials else 0
        self._seconds = parse_seconds(seconds) if seconds else 0.0
        for record in records:
            self.finish(record)

    def propose(self, number: int, label: str) -> str:
        """Take a trial among the running; says what it does there."""
        self.running[number] = one_line(label)
        self._at_once = max(self._at_once, len(self.running))
        if number not in self._paused:
            return "started"
        self._paused.remove(number)
        self.ended["paused"] -= 1
        return "goes on"

    def finish(self, record: TrialRecord) -> None:
        self.running.pop(record.number, None)
        self.ended[record.state] += 1
        if record.state == "paused":
            self._paused.add(record.number)
        if record.state == "complete":
            self._durations.append(record.seconds)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def counts(self) -> str:
        """Say how many are done, running, failed, and how long it may take yet."""
        total = f" of {self._trials}" if self._trials else ""
        parts = [f"{self.ended['complete']}{total} done", f"{len(self.running)} running"]
        parts += [f"{n} {state}" for state, n in sorted(self.ended.items()) if n and state != "complete"]
        left = self._left()
        return " · ".join([*parts, *([f"about {show_seconds(left)} left"] if left is not None else [])])

    def _left(self) -> float | None:
        """Estimate the seconds to the first limit: the time's end, or the last trial at the usual pace."""
        ends = [max(0.0, self._seconds - self.elapsed)] if self._seconds else []
        if self._trials and self._durations:
            remaining = max(0, self._trials - sum(n for state, n in self.ended.items() if state != "stopped"))
            ends.append(statistics.median(self._durations) * remaining / self._at_once)
        return min(ends, default=None)

    def values(self, record: TrialRecord) -> list[str]:
        return [show_value(record.values[o["name"]], o["unit"]) for o in self.objectives if o["name"] in record.values]

    def sentence(self, record: TrialRecord) -> str:
        what = f"trial {record.number} {record.state}"
        if record.state == "complete":
            pairs = zip((o["name"] for o in self.objectives), self.values(record), strict=False)
            return f"{what}: {describe(record)}: {', '.join(f'{name} {shown}' for name, shown in pairs)}"
        return f"{what}: {describe(record)}: {record.reason or 'no reason given'}"


class PlainView:
    """Prints one line an event; for logs and pipes. A context manager."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._progress = _Progress()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Nothing to end."""

    def started(self, info: RunInfo, records: Sequence[TrialRecord], front: Sequence[TrialRecord]) -> None:
        """Say what is searched."""
        self._progress.start(info, records)
        self._print(f"search for {', '.join(o['name'] for o in info.objectives)}; {_limits(info)}")

    def note(self, text: str) -> None:
        """Print it."""
        self._print(text)

    def proposed(self, number: int, label: str) -> None:
        """Say what is tried."""
        self._print(f"trial {number} {self._progress.propose(number, label)}: {label}")

    def finished(self, record: TrialRecord, front: Sequence[TrialRecord]) -> None:
        """Say how it ended, and how the search stands."""
        self._progress.finish(record)
        best = f"; best so far trial {front[0].number}, {len(front)} on the front" if front else ""
        self._print(f"{self._progress.sentence(record)}{best} ({self._progress.counts()})")

    def closed(self, summary: str) -> None:
        """Print the summary."""
        for line in summary.splitlines():
            self._print(line)

    def _print(self, text: str) -> None:
        # sys.stderr is looked up late: a test or a notebook may have replaced it.
        stream = self._stream or sys.stderr
        # A log in ASCII must not end the search because of a model's name.
        encoding = getattr(stream, "encoding", None) or "utf-8"
        print(one_line(text).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


class LiveView:
    """A table on a terminal that a thread of its own renews, as the main one may be training. A context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._lock = threading.Lock()
        self._progress = _Progress()
        self._limits = ""
        self._front: list[TrialRecord] = []
        self._last = ""
        # Last, because it renders at once.
        self._live = Live(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=4,
            transient=True,
            # What goes to a pipe must not be caught and shown on the terminal instead.
            redirect_stdout=sys.stdout.isatty(),
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    def started(self, info: RunInfo, records: Sequence[TrialRecord], front: Sequence[TrialRecord]) -> None:
        """Start the clock and take over the limits, and what is done already."""
        with self._lock:
            self._progress.start(info, records)
            self._limits, self._front = _limits(info), list(front)

    def note(self, text: str) -> None:
        """Print it above the table, where it stays."""
        self._console.print(Text(one_line(text)))

    def proposed(self, number: int, label: str) -> None:
        """Show it among the running."""
        with self._lock:
            self._progress.propose(number, label)

    def finished(self, record: TrialRecord, front: Sequence[TrialRecord]) -> None:
        """Count it, and show the new front."""
        with self._lock:
            self._progress.finish(record)
            self._front = list(front)
            self._last = one_line(self._progress.sentence(record))

    def closed(self, summary: str) -> None:
        """Take the table away and leave the summary."""
        self._live.stop()
        for line in summary.splitlines():
            self._console.print(Text(one_line(line)))

    def _render(self) -> RenderableType:
        with self._lock:
            counts, elapsed = self._progress.counts(), self._progress.elapsed
            running, front, last = dict(self._progress.running), list(self._front), self._last
        head = Text(f"autopeft · {counts} · {show_seconds(elapsed)} elapsed", style="bold")
        lines: list[RenderableType] = [head, Text(self._limits, style="dim")]
        for number, label in list(running.items())[:4]:
            lines.append(Text(f"  running {number}: {label}", style="cyan", no_wrap=True, overflow="ellipsis"))
        if last:
            lines.append(Text(f"  last: {last}", style="dim", no_wrap=True, overflow="ellipsis"))
        if front:
            lines.append(self._table(front))
        return Group(*lines)

    def _table(self, front: Sequence[TrialRecord]) -> Table:
        more = f", {FRONT_ROWS} best of" if len(front) > FRONT_ROWS else ","
        table = Table(title=f"the front{more} {len(front)}", title_justify="left", title_style="", expand=False)
        table.add_column("trial", justify="right")
        for objective in self._progress.objectives:
            table.add_column(Text(one_line(objective["name"])), justify="right", no_wrap=True)
        table.add_column("configuration", overflow="ellipsis", no_wrap=True)
        for row, record in enumerate(front[:FRONT_ROWS]):
            cells = [Text(v) for v in (str(record.number), *self._progress.values(record), describe(record))]
            table.add_row(*cells, style="bold green" if row == 0 else "")
        return table


def make_view(stream: TextIO | None = None) -> LiveView | PlainView:
    """Give the view that suits a stream (standard error by default): live on a terminal that can, else plain."""
    console = Console(file=stream or sys.stderr)
    able = console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")
    return LiveView(console) if able else PlainView(stream)


def _limits(info: RunInfo) -> str:
    """Say the budget of a run in a line."""
    base = (info.anatomy or {}).get("base_params")
    limits = []
    if info.parameter_limit is not None:
        share = f" ({show_percent(info.parameter_limit / base)})" if base else ""
        limits.append(f"at most {show_count(info.parameter_limit)} trainable parameters{share}")
    if info.memory_limit_bytes is not None:
        limits.append(f"at most {show_bytes(info.memory_limit_bytes)} of memory")
    if info.request.get("steps_total"):
        limits.append(f"at most {info.request['steps_total']:,} optimiser steps")
    if info.request.get("time"):
        limits.append(f"at most {show_seconds(parse_seconds(info.request['time']))}")
    return ", ".join(limits) or "no limits"
