"""What the driver's thread and Tune's thread share: queued work units, those under way, and the outcomes."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from dataclasses import dataclass

from autopeft.errors import AutopeftError
from autopeft.records import Outcome, WorkUnit


@dataclass(slots=True)
class _Ticket:
    """A submitted work unit, and how often its worker has died."""

    unit: WorkUnit
    deaths: int = 0
    started: float = 0.0


class Board:
    """Hands work units from one thread to another and outcomes back; each unit leaves as exactly one outcome.

    Args:
        capacity: Most units under way at once.
        max_restarts: How many deaths of its worker a unit survives.
        silence_seconds: How long after the last `heard` nobody is believed to be there any more.
    """

    def __init__(self, capacity: int = 1, max_restarts: int = 0, silence_seconds: float = math.inf) -> None:
        self._capacity, self._max_restarts, self._silence_seconds = capacity, max_restarts, silence_seconds
        self._heard = time.monotonic()
        self._changed = threading.Condition()
        self._queue: deque[_Ticket] = deque()
        self._under_way: dict[str, _Ticket] = {}
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
            self._changed.notify_all()

    def collect(self, timeout_seconds: float) -> list[Outcome]:
        """Give the outcomes that have come in, waiting at most this long; at once when nothing can come.

        Raises:
            AutopeftError: If work units are left and nobody is there to run them.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
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
            left = len(self._queue) + len(self._under_way)
            raise AutopeftError(
                f"executor: Ray has stopped ({self._ended or 'closed'}); work units left without a worker: {left}. "
                "The trials recorded so far are kept: resume the run, or use --executor local."
            )

    # --- Tune's side ---

    def take(self, key: str) -> str | None:
        """Give the next work unit as JSON, named `key` from now on; None if there is none, no room, or an end.

        Blocks only while nothing at all is under way: then Tune's loop has no event to miss, and would otherwise
        sleep for a whole second before it asks again.
        """
        self.asked.set()
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self._queue or self._under_way)
            if self.closed or not self._queue or len(self._under_way) >= self._capacity:
                return None
            ticket = self._under_way[key] = self._queue.popleft()
            ticket.started = time.monotonic()
            return json.dumps(ticket.unit.to_dict())

    def finish(self, key: str, outcome: Outcome) -> None:
        """Note the outcome of a unit."""
        with self._changed:
            if self._under_way.pop(key, None) is not None:
                self._outcomes.append(outcome)
                self._changed.notify_all()

    def lose(self, key: str, error: str) -> None:
        """Note that a unit's worker died: the unit is handed out again, or fails once it has had its restarts."""
        with self._changed:
            ticket = self._under_way.pop(key, None)
            if ticket is None:
                return
            ticket.deaths += 1
            if ticket.deaths <= self._max_restarts:
                self._queue.appendleft(ticket)
            else:
                reason = f"worker died {ticket.deaths} time{'s' * (ticket.deaths != 1)}"
                if "creation task" in error:  # an ordinary exception while the process came up: its last line says all
                    reason += f": {error.strip().splitlines()[-1]}"
                seconds = time.monotonic() - ticket.started
                self._outcomes.append(
                    Outcome(ticket.unit.trial, state="failed", reason=reason, traceback=error, seconds=seconds)
                )
            self._changed.notify_all()

    def heard(self) -> None:
        """Note a sign of life."""
        self._heard = time.monotonic()

    def end(self, reason: str) -> None:
        """Say that no unit will be taken any more."""
        with self._changed:
            self._ended = reason
            self._changed.notify_all()
        self.asked.set()
