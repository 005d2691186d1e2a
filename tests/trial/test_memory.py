"""The storages alive, against sums by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autopeft.trial.memory import StorageTracker, held_by

KIB = 256  # fp32 elements


def test_what_is_alive_before_counts():
    resident = torch.zeros(KIB)
    with StorageTracker([resident, resident.view(2, -1), resident[3:]]) as tracker:
        pass
    assert tracker.live_bytes == tracker.peak_bytes == 1024


def test_made_freed_and_made_again():
    with StorageTracker([]) as tracker:
        a = torch.ones(KIB)
        b = a + 1
        assert tracker.live_bytes == 2048
        del a
        assert tracker.live_bytes == 1024
        c = torch.cat([b, b, b])
        assert tracker.live_bytes == 1024 + 3072
        del b, c
        assert tracker.live_bytes == 0
    assert tracker.peak_bytes == 4096


def test_views_and_in_place_operations_take_no_memory():
    with StorageTracker([]) as tracker:
        a = torch.ones(KIB)
        views = [a.view(16, 16), a[5:], a.reshape(2, -1).t(), a.detach()]
        a.mul_(3).add_(1)
        assert tracker.live_bytes == 1024
        del a
        assert tracker.live_bytes == 1024  # the views hold it
        del views
        assert tracker.live_bytes == 0
    assert tracker.peak_bytes == 1024


def test_a_view_of_part_holds_the_whole():
    with StorageTracker([]) as tracker:
        part = torch.ones(KIB)[:1]
        assert part.numel() == 1
        assert tracker.live_bytes == 1024


def test_nothing_takes_nothing():
    with StorageTracker([torch.empty(0)]) as tracker:
        empty = torch.empty(0, 5)
        assert empty.numel() == tracker.live_bytes == 0


def test_a_linear_holds_input_for_the_backward_pass_and_then_gradients():
    """x (8, 32) -> 64 outputs -> sum; all in fp32, bytes by hand."""
    weight = torch.randn(64, 32, requires_grad=True)
    x = torch.randn(8, 32)
    held = 4 * (weight.numel() + x.numel())
    with StorageTracker([weight, x]) as tracker:
        out = x @ weight.t()
        assert tracker.live_bytes == held + 4 * 8 * 64
        loss = out.square().sum()
        # `square` keeps its input, which is `out`, and its own result is freed after the sum.
        assert tracker.live_bytes == held + 4 * 8 * 64 + 4
        del out
        assert tracker.live_bytes == held + 4 * 8 * 64 + 4
        loss.backward()
        del loss
        assert tracker.live_bytes == held + 4 * weight.numel()  # only the gradient is new
    assert tracker.peak_bytes >= held + 2 * 4 * 8 * 64
    assert weight.grad is not None


def test_an_optimiser_holds_two_moments_and_a_count_a_parameter():
    model = nn.Linear(10, 20)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    assert held_by(optimizer) == []
    model(torch.ones(1, 10)).sum().backward()
    optimizer.step()
    assert sum(t.numel() for t in held_by(optimizer)) == 2 * (10 * 20 + 20) + 2


def test_freed_after_the_end_is_no_error():
    a = torch.ones(4)
    with StorageTracker([a]) as tracker:
        b = a + 1
    del a, b
    assert tracker.peak_bytes == 32


@pytest.mark.parametrize("repeat", range(2))
def test_the_peak_of_a_step_is_the_same_each_time(repeat):
    def peak():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8))
        x = torch.randn(16, 32)
        with StorageTracker([x, *model.parameters()]) as tracker:
            model(x).logsumexp(-1).sum().backward()
        return tracker.peak_bytes

    assert len({peak() for _ in range(4)}) == 1
