"""Hidden states kept in the machine's memory, for trials that would compute the same ones."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

ROOM_FOR_STATES = 0.1
"""Share of a worker's part of the machine's memory that kept states may take; they are never on a GPU."""


class States:
    """Hidden states in the machine's memory, in groups that are of use together (one base, one mode, one layer).

    When room is short, whole groups go that the trial under way has not used, the least recently used first. What has
    no room then is not kept: of a group that is too large its first batches stay, where dropping the oldest would drop
    each just before it is needed again.
    """

    def __init__(self, *, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._groups: dict[tuple[Hashable, ...], dict[Hashable, Tensor]] = {}
        self._in_use: set[tuple[Hashable, ...]] = set()
        self.held_bytes = 0

    def begin(self) -> None:
        """Note that another trial begins."""
        self._in_use.clear()

    def get(self, group: tuple[Hashable, ...], key: Hashable) -> Tensor | None:
        """Give a state, if it is kept."""
        state = self._groups.get(group, {}).get(key)
        if state is not None:
            self._use(group)
        return state

    def put(self, group: tuple[Hashable, ...], key: Hashable, state: Tensor) -> None:
        """Keep a copy of a state, if there is or can be room for it."""
        self._groups.setdefault(group, {})
        self._use(group)
        if self.held_bytes + state.nbytes > self.limit_bytes:
            unused = [other for other in self._groups if other not in self._in_use]
            if self.held_bytes - sum(map(self._size, unused)) + state.nbytes > self.limit_bytes:
                return  # not even without them
            while self.held_bytes + state.nbytes > self.limit_bytes:
                self._drop(unused.pop(0))
        self._groups[group][key] = state.detach().to("cpu", copy=True)
        self.held_bytes += state.nbytes

    def drop(self, base: Hashable) -> None:
        """Forget all that a base gave."""
        for group in [group for group in self._groups if group[0] == base]:
            self._drop(group)

    def clear(self) -> bool:
        """Forget everything; tells whether there was anything."""
        held = self.held_bytes > 0
        self._groups.clear()
        self.held_bytes = 0
        return held

    def _use(self, group: tuple[Hashable, ...]) -> None:
        self._in_use.add(group)
        self._groups[group] = self._groups.pop(group)

    def _drop(self, group: tuple[Hashable, ...]) -> None:
        self.held_bytes -= self._size(group)
        del self._groups[group]

    def _size(self, group: tuple[Hashable, ...]) -> int:
        return sum(state.nbytes for state in self._groups[group].values())
