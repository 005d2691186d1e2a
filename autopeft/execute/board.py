"""What the driver's thread and Tune's thread share: queued work units, those under way, and the outcomes."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft.errors import AutopeftError
from autopeft.work import Outcome, WorkUnit

_RAY_KILLED = "running low on memory"
"""What Ray says of a worker that its own watch over the machine's memory killed."""


@dataclass(slots=True)
class _Ticket:
    """A submitted work unit, how often its worker has died, and how often of that for want of memory.

    Attributes:
        alone: Whether it must be handed out by itself: a worker died of it or of one that was with it.
    """

    unit: WorkUnit
    deaths: int = 0
    starved: int = 0
    started: float = 0.0
    alone: bool = False


class Board:
    """Hands work units from one thread to another and outcomes back; each unit leaves as exactly one outcome.

    Args:
        capacity: Most hand-outs under way at once.
        together: Most units of a hand-out. Fewer are handed out only when the driver waits, and so has no more; and
            half as many from then on when a worker dies of a hand-out of several.
        max_restarts: How many deaths of its worker a unit survives.
        silence_seconds: How long after the last `heard` nobody is believed to be there any more.
        count_kills: Tells how many processes of this machine the kernel has killed for want of memory.
    """

    def __init__(
        self,
        capacity: int = 1,
        max_restarts: int = 0,
        silence_seconds: float = math.inf,
        count_kills: Callable[[], int] = lambda: 0,
        together: int = 1,
    ) -> None:
        self._capacity, self._max_restarts, self._silence_seconds = capacity, max_restarts, silence_seconds
        self._count_kills, self._kills = count_kills, count_kills()
        self._heard = time.monotonic()
        self._changed = threading.Condition()
        self._queue: deque[_Ticket] = deque()
        self._under_way: dict[str, list[_Ticket]] = {}
        self._together, self._awaited = together, False
        self._outcomes: list[Outcome] = []
        self._ended: str | None = None
        self.asked = threading.Event()
        self.closed = False

    def __reduce__(self) -> tuple[type[Board], tuple[()]]:
        # Tune pickles its settings at every start; what is on the board belongs to this process alone.
        return Board, ()

    # --- the driver's side ---

    def submit(self, unit: WorkUnit) -> None:
        """Queue a work unit.

        Raises:
            AutopeftError: If nobody takes units any more.
        """
        with self._changed:
            self.check()
            self._queue.append(_Ticket(unit))
            self._awaited = False
            self._changed.notify_all()

    def collect(self, timeout_seconds: float) -> list[Outcome]:
        """Give the outcomes that have come in, waiting at most this long; at once when nothing can come.

        Raises:
            AutopeftError: If work units are left and nobody is there to run them.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            self._awaited = True
            self._changed.notify_all()
            while not self._outcomes and (self._queue or self._under_way):
                if time.monotonic() - self._heard > self._silence_seconds:
                    self._ended = self._ended or f"no sign of life for {self._silence_seconds:.0f} s"
                self.check()
                if (left := deadline - time.monotonic()) <= 0:
                    break
                self._changed.wait(min(left, 1.0))
            outcomes, self._outcomes = self._outcomes, []
            return outcomes

    def close(self) -> None:
        """Hand out nothing more; what is queued or under way is forgotten."""
        with self._changed:
            self.closed = True
            self._queue.clear()
            self._under_way.clear()
            self._changed.notify_all()

    def check(self) -> None:
        """Raise if nobody takes units any more.

        Raises:
            AutopeftError: Then.
        """
        if self._ended is not None or self.closed:
            left = len(self._queue) + sum(map(len, self._under_way.values()))
            raise AutopeftError(
                f"executor: Ray has stopped ({self._ended or 'closed'}); work units left without a worker: {left}. "
                "The trials recorded so far are kept: resume the run, or use --executor local."
            )

    # --- Tune's side ---

    def take(self, key: str) -> str | None:
        """Give the next work units as JSON, named `key` from now on; None if there are none, no room, or an end.

        Blocks only while nothing at all is under way: then Tune's loop has no event to miss, and would otherwise
        sleep for a whole second before it asks again.
        """
        self.asked.set()
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self._is_ready() or self._under_way)
            if self.closed or not self._is_ready() or len(self._under_way) >= self._capacity:
                return None
            tickets = [self._queue.popleft()]
            while not tickets[0].alone and len(tickets) < self._together and self._queue and not self._queue[0].alone:
                tickets.append(self._queue.popleft())
            self._under_way[key] = tickets
            for ticket in tickets:
                ticket.started = time.monotonic()
            return json.dumps([ticket.unit.to_dict() for ticket in tickets])

    def _is_ready(self) -> bool:
        """Tell whether there is something to hand out: as much as goes together, or all that there will be."""
        return bool(self._queue) and (self._awaited or len(self._queue) >= self._together or self._queue[0].alone)

    def finish(self, key: str, outcomes: Sequence[Outcome]) -> None:
        """Note the outcomes of units."""
        with self._changed:
            if self._under_way.pop(key, None) is not None:
                self._outcomes += outcomes
                self._changed.notify_all()

    def lose(self, key: str, error: str) -> None:
        """Note that units' worker died: a unit is handed out again, or has failed once it has had its restarts.

        One that was killed for want of memory is tried once more, as it may have been others that took the memory;
        then it is infeasible on this machine. Of units that were together nobody knows whose fault it was: each is
        handed out again by itself, and only what happens then counts.
        """
        with self._changed:
            tickets = self._under_way.pop(key, [])
            if len(tickets) > 1:
                self._was_starved(error)  # that kill explains this death, and no later one
                self._together = min(self._together, len(tickets) // 2)
                for ticket in reversed(tickets):
                    ticket.alone = True
                    self._queue.appendleft(ticket)
            elif tickets:
                self._lose(tickets[0], error)
            self._changed.notify_all()

    def _lose(self, ticket: _Ticket, error: str) -> None:
        ticket.deaths += 1
        ticket.starved += self._was_starved(error)
        if ticket.deaths <= self._max_restarts and ticket.starved <= 1:
            ticket.alone = True
            self._queue.appendleft(ticket)
        else:
            self._outcomes.append(_outcome_of_death(ticket, error))

    def _was_starved(self, error: str) -> bool:
        """Tell whether Ray or the kernel killed a worker for want of memory; each kill explains one death."""
        if _RAY_KILLED in error:
            return True
        if self._count_kills() > self._kills:
            self._kills += 1
            return True
        return False

    def heard(self) -> None:
        """Note a sign of life."""
        self._heard = time.monotonic()

    def end(self, reason: str) -> None:
        """Say that no unit will be taken any more."""
        with self._changed:
            self._ended = reason
            self._changed.notify_all()
        self.asked.set()


def _outcome_of_death(ticket: _Ticket, error: str) -> Outcome:
    times = f"worker died {ticket.deaths} time{'s' * (ticket.deaths != 1)}"
    if "creation task" in error:  # an ordinary exception while the process came up: its last line says all
        times += f": {error.strip().splitlines()[-1]}"
    about: dict[str, Any] = {"traceback": error, "seconds": time.monotonic() - ticket.started}
    if ticket.starved:
        reason = f"out of memory: its {times}, killed for want of memory; how much it held is not known"
        return Outcome(ticket.unit.trial, state="infeasible", reason=reason, exhausted_bytes=1, **about)
    return Outcome(ticket.unit.trial, state="failed", reason=times, **about)


def oom_kills() -> int:
    """Count the processes of this machine that the kernel has killed for want of memory; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
