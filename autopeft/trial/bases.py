"""Base models that stay in memory between trials: one a format; the least recently used is given up for room."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from autopeft.candidates import BaseFormat
from autopeft.trial.adapters import Resident
from autopeft.trial.frozen import FrozenLayers
from autopeft.trial.model import checksum, tensors_of
from autopeft.trial.packing import keeps_texts_apart

ROOM_FOR_BASES = 0.5
"""Share of a worker's memory that resident bases may take together; a single one may take all. The rest trains."""


@dataclass(frozen=True)
class Base:
    """A loaded base model, its layers, the checksum that it must have after every trial, and the bytes it holds."""

    resident: Resident
    frozen: FrozenLayers
    checksum: str
    held_bytes: int

    @cached_property
    def keeps_texts_apart(self) -> bool:
        """Whether texts packed into a row are computed as if each were alone; tried once."""
        return keeps_texts_apart(self.resident.model)


class Bases:
    """The resident bases of one worker.

    Args:
        load: Loads the model of a format.
        limit_bytes: Most that they may hold together.
    """

    def __init__(self, load: Callable[[BaseFormat], Any], *, limit_bytes: int, device: str) -> None:
        self._load, self._limit_bytes, self._cuda = load, limit_bytes, device.startswith("cuda")
        self._held: dict[BaseFormat, Base] = {}  # the least recently used first
        self._sizes: dict[BaseFormat, int] = {}  # of all that were ever loaded

    def __contains__(self, form: BaseFormat) -> bool:
        return form in self._held

    def get(self, form: BaseFormat) -> Base:
        """Give the base of a format; loads it if it is not resident, after others have made room for it."""
        if form not in self._held:
            self._make_room(self._expected_bytes(form))
            self._held[form] = self._loaded(form)
            self._sizes[form] = self._held[form].held_bytes
        self._held[form] = self._held.pop(form)
        self._make_room(0, keep=1)
        return self._held[form]

    def drop(self, form: BaseFormat) -> None:
        """Give up a base, if it is resident."""
        self._held.pop(form, None)
        if self._cuda:
            torch.cuda.empty_cache()

    def drop_others(self, form: BaseFormat) -> bool:
        """Give up all bases but one; tells whether there were any."""
        others = [other for other in self._held if other != form]
        for other in others:
            self.drop(other)
        return bool(others)

    @property
    def held_bytes(self) -> int:
        """What all resident bases hold."""
        return sum(base.held_bytes for base in self._held.values())

    def _make_room(self, needed_bytes: int, *, keep: int = 0) -> None:
        """Give up the least recently used until that much is free, but never the last `keep` ones."""
        while len(self._held) > keep and self.held_bytes + needed_bytes > self._limit_bytes:
            self.drop(next(iter(self._held)))

    def _expected_bytes(self, form: BaseFormat) -> int:
        """Give the size of a base before it is loaded: as it was, or by those of other bits; 0 for the very first."""
        if form in self._sizes:
            return self._sizes[form]
        return max((size * form.bits // known.bits for known, size in self._sizes.items()), default=0)

    def _loaded(self, form: BaseFormat) -> Base:
        before = torch.cuda.memory_allocated() if self._cuda else 0
        model = self._load(form)
        # CUDA counts in the blocks of its allocator, as the peak of a training is counted.
        held = torch.cuda.memory_allocated() - before if self._cuda else _storage_bytes(model)
        base = Base(Resident(model), FrozenLayers(model), checksum(model), held)
        # The collection after each trial took half a second, nearly all of it to look at what stays for good: the
        # libraries and the base. A base that is dropped needs no collection, as nothing in it refers in a circle. A
        # Ray worker's process is its own; in the user's, LocalExecutor undoes it when the search is over.
        gc.collect()
        gc.freeze()
        return base


def _storage_bytes(model: Any) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_of(model).values()}
    return sum(storages.values())
