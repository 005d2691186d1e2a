"""The replayed allocator against its rules, by hand."""

from __future__ import annotations

import random

import pytest

from autopeft.trial.prediction.allocator import EMPTY_CACHE, MIB, CachingAllocator, replay


def test_small_blocks_share_a_segment_of_two_mib() -> None:
    allocator = replay([(i, 1000) for i in range(2048)])
    assert allocator.allocated_bytes == 2048 * 1024
    assert allocator.reserved_bytes == 2 * MIB
    allocator.allocate(-5, 1)
    assert allocator.reserved_bytes == 4 * MIB


def test_medium_blocks_share_a_segment_of_twenty_mib() -> None:
    allocator = replay([(i, 6 * MIB) for i in range(3)])
    assert allocator.reserved_bytes == 20 * MIB
    allocator.allocate(3, 6 * MIB)  # 2 MiB are left in the first
    assert allocator.reserved_bytes == 40 * MIB
    allocator.allocate(4, 2 * MIB)
    assert allocator.reserved_bytes == 40 * MIB


def test_a_large_block_has_a_segment_rounded_to_two_mib_and_keeps_a_small_rest() -> None:
    allocator = replay([(1, 11 * MIB + 1)])
    assert allocator.reserved_bytes == 12 * MIB
    assert allocator.allocated_bytes == 12 * MIB  # less than 1 MiB would be left over


def test_the_smallest_free_block_that_fits_is_taken_and_cut() -> None:
    events = [(1, 40 * MIB), (2, 20 * MIB), (1, 0), (2, 0), (3, 16 * MIB)]
    allocator = replay(events)
    assert allocator.reserved_bytes == 60 * MIB
    assert allocator.allocated_bytes == 16 * MIB
    allocator.allocate(4, 40 * MIB)
    assert allocator.reserved_bytes == 60 * MIB


def test_freed_neighbours_join() -> None:
    events = [(0, 40 * MIB), (0, 0), (1, 20 * MIB), (2, 20 * MIB), (2, 0), (1, 0), (3, 40 * MIB)]
    assert replay(events).reserved_bytes == 40 * MIB


def test_emptying_the_cache_gives_back_what_is_wholly_free() -> None:
    events = [(1, 40 * MIB), (2, 30 * MIB), (1, 0), EMPTY_CACHE]
    assert replay(events).reserved_bytes == 30 * MIB
    assert replay([*events, (3, 40 * MIB)]).reserved_bytes == 70 * MIB


@pytest.mark.parametrize("seed", range(5))
def test_reserved_holds_what_is_allocated_whatever_happens(seed: int) -> None:
    draw = random.Random(seed)
    allocator, alive = CachingAllocator(), {}
    for key in range(3000):
        if alive and draw.random() < 0.48:
            gone = draw.choice(sorted(alive))
            allocator.release(gone)
            del alive[gone]
        else:
            alive[key] = int(10 ** draw.uniform(1, 8))
            allocator.allocate(key, alive[key])
        assert sum(alive.values()) <= allocator.allocated_bytes <= allocator.reserved_bytes
    for key in alive:
        allocator.release(key)
    assert allocator.allocated_bytes == 0
    allocator.empty_cache()
    assert allocator.reserved_bytes == 0
