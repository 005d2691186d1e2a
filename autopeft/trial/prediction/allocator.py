"""CUDA's caching allocator, replayed: from the sizes and the order of allocations to the memory that is reserved.

The rules are those of c10/cuda/CUDACachingAllocator.cpp (PyTorch 2.13) with its default settings and one stream:
sizes are rounded to 512 bytes, up to 1 MiB are served from segments of 2 MiB, up to 10 MiB from segments of 20 MiB,
and larger ones get a segment of their own, rounded to 2 MiB. The smallest free block that fits is taken, and cut where
more than 1 MiB (small blocks: 512 bytes) would be left over.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field

MIB = 1 << 20
BLOCK_BYTES = 512
EMPTY_CACHE = (-1, -1)
"""In a list of events: torch.cuda.empty_cache()."""
_SMALL_BYTES = MIB
_SMALL_SEGMENT_BYTES = 2 * MIB
_MEDIUM_BYTES = 10 * MIB
_MEDIUM_SEGMENT_BYTES = 20 * MIB
_ROUND_SEGMENT_BYTES = 2 * MIB


def round_block(size_bytes: int) -> int:
    """Round a request to what the allocator hands out at least.

    >>> round_block(1), round_block(513)
    (512, 1024)
    """
    return max(BLOCK_BYTES, -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES)


def segment_bytes(size_bytes: int) -> int:
    """Give what is asked of the driver for a block that fits nowhere.

    >>> [segment_bytes(n) // MIB for n in (512, 2 * MIB, 11 * MIB)]
    [2, 20, 12]
    """
    if size_bytes <= _SMALL_BYTES:
        return _SMALL_SEGMENT_BYTES
    if size_bytes < _MEDIUM_BYTES:
        return _MEDIUM_SEGMENT_BYTES
    return -(-size_bytes // _ROUND_SEGMENT_BYTES) * _ROUND_SEGMENT_BYTES


@dataclass(slots=True)
class _Block:
    """A piece of a segment; its neighbours are those of the same segment."""

    address: int
    size: int
    small: bool
    free: bool = False
    before: _Block | None = None
    after: _Block | None = None


@dataclass(slots=True)
class CachingAllocator:
    """The state of the allocator; `reserved_bytes` and `peak_allocated_bytes` count as torch.cuda does."""

    reserved_bytes: int = 0
    allocated_bytes: int = 0
    peak_allocated_bytes: int = 0
    _next_address: int = 0
    _blocks: dict[int, _Block] = field(default_factory=dict)
    _free: dict[bool, list[tuple[int, int]]] = field(default_factory=lambda: {True: [], False: []})
    _free_blocks: dict[int, _Block] = field(default_factory=dict)

    def allocate(self, key: int, size_bytes: int) -> None:
        """Hand out a block under a key."""
        size = round_block(size_bytes)
        small = size <= _SMALL_BYTES
        free = self._free[small]
        at = bisect_left(free, (size, -1))
        if at < len(free):
            block = self._free_blocks.pop(free.pop(at)[1])
        else:
            block = _Block(self._next_address, segment_bytes(size), small)
            # A gap, so that no two segments are taken for neighbours.
            self._next_address += block.size + 1
            self.reserved_bytes += block.size
        left = block.size - size
        if left >= BLOCK_BYTES if small else left > _SMALL_BYTES:
            rest = _Block(block.address + size, left, small, before=block, after=block.after)
            if block.after is not None:
                block.after.before = rest
            block.after, block.size = rest, size
            self._put(rest)
        block.free = False
        self._blocks[key] = block
        self.allocated_bytes += block.size
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)

    def release(self, key: int) -> None:
        """Take a block back; it joins its free neighbours."""
        block = self._blocks.pop(key)
        self.allocated_bytes -= block.size
        if block.before is not None and block.before.free:
            before = self._take(block.before)
            before.size += block.size
            before.after = block.after
            block = before
        if block.after is not None and block.after.free:
            after = self._take(block.after)
            block.size += after.size
            block.after = after.after
        if block.after is not None:
            block.after.before = block
        self._put(block)

    def empty_cache(self) -> None:
        """Give whole free segments back to the driver."""
        for block in [b for b in self._free_blocks.values() if b.before is None and b.after is None]:
            self._take(block)
            self.reserved_bytes -= block.size

    def _put(self, block: _Block) -> None:
        block.free = True
        insort(self._free[block.small], (block.size, block.address))
        self._free_blocks[block.address] = block

    def _take(self, block: _Block) -> _Block:
        free = self._free[block.small]
        del free[bisect_left(free, (block.size, block.address))]
        return self._free_blocks.pop(block.address)


def replay(events: Iterable[tuple[int, int]], *, allocator: CachingAllocator | None = None) -> CachingAllocator:
    """Replay (key, size in bytes) in order; size 0 releases the key."""
    allocator = allocator or CachingAllocator()
    for key, size in events:
        if (key, size) == EMPTY_CACHE:
            allocator.empty_cache()
        elif size:
            allocator.allocate(key, size)
        else:
            allocator.release(key)
    return allocator
