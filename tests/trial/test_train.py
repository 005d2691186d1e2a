from __future__ import annotations

import math

import pytest
import torch
from small_run import pretrained
from torch import nn

from autopeft.candidates import BaseFormat, Candidate, Recipe
from autopeft.errors import TrialError
from autopeft.plans import plan_of
from autopeft.recipe import rate_at
from autopeft.trial.adapters import Resident
from autopeft.trial.model import checksum, load_base, tensors_of
from autopeft.trial.reading import read_anatomy
from autopeft.trial.train import CLIP_NORM, train


class _Toy(nn.Module):
    """A model of one weight; its loss is a function of it."""

    def __init__(self, loss):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self._loss = loss

    def forward(self, scale):
        return type("Out", (), {"loss": self._loss(self.weight, scale)})


def run(model, *, steps=5, rate=0.1, measured=1, scale=lambda step: 1.0, **recipe):
    return train(
        model,
        parts_at=lambda step: [{"scale": torch.tensor(scale(step))}],
        steps=steps,
        recipe=Recipe(rate, **recipe),
        seed=0,
        device="cpu",
        measured_step=measured,
    )


def test_training_equals_plain_adamw_with_the_same_schedule():
    toy = _Toy(lambda w, s: (s * w).square().sum())
    losses = run(toy, steps=20, rate=0.3, scale=lambda step: 0.1 + step % 3).losses
    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=0.3, weight_decay=0.0, fused=True)
    for step in range(20):
        optimizer.param_groups[0]["lr"] = 0.3 * min((step + 1) / 2, (20 - step) / 18)  # 6% of 20 steps are 2
        loss = ((0.1 + step % 3) * weight).square().sum()
        assert loss.item() == losses[step]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([weight], CLIP_NORM)
        optimizer.step()
    assert torch.equal(toy.weight, weight)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 100, 1000])
def test_the_rate_rises_to_its_peak_and_falls_to_nothing(steps):
    rates = [rate_at(step, steps, Recipe(1.0)) for step in range(steps)]
    peak = rates.index(max(rates))
    assert rates[peak] == 1.0
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert peak <= max(1, math.ceil(0.06 * steps))
    assert rate_at(steps, steps, Recipe(1.0)) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_training_at_its_step(value):
    toy = _Toy(lambda w, s: (w * s).sum())
    with pytest.raises(TrialError, match=rf"the loss is {value} at step 3; the learning rate 1.00e-01 diverges"):
        run(toy, scale=lambda step: value if step == 3 else 1.0)


def test_a_last_step_that_breaks_the_adapter_is_a_divergence():
    # The square root has no slope at 0, where the loss itself is a number.
    toy = _Toy(lambda w, s: (w * 0).sum().sqrt() + s)
    with pytest.raises(TrialError, match="the adapter is not a number at the end"):
        run(toy, steps=1, measured=0)


def test_what_needs_no_gradient_is_left_alone():
    toy = _Toy(lambda w, s: w.sum() * s)
    toy.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    run(toy)
    assert torch.equal(toy.frozen, torch.ones(2))
    assert not torch.equal(toy.weight, torch.ones(3))
    assert not toy.training


def test_half_precision_is_trained_in_fp32_and_given_back_as_it_was():
    seen = []

    def loss(w, s):
        seen.append(w.dtype)
        return w.square().sum()

    toy = _Toy(loss).bfloat16()
    run(toy, rate=1e-4, steps=4)
    assert set(seen) == {torch.float32}
    assert toy.weight.dtype == torch.bfloat16


@pytest.fixture(scope="module")
def bert_run(tmp_path_factory):
    source = pretrained("bert", "text-classification", tmp_path_factory.mktemp("bert"))
    return Resident(load_base(source, BaseFormat(32), device="cpu")), read_anatomy(source)


def batch(rows, length=12):
    generator = torch.Generator().manual_seed(rows * length)
    ids = torch.randint(3, 128, (rows, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 5}


def trained(bert_run, *, rows=4, seed=0, length=12, measured=1, values=None, steps=4):
    resident, anatomy = bert_run
    torch.manual_seed(seed)
    plan = plan_of(Candidate({"method": "lora", "bits": 32, "lora.rank": 4, **(values or {})}), anatomy)
    adapted = resident.attach(plan, task="text-classification", head=anatomy.head)
    try:
        return train(
            adapted,
            parts_at=lambda step: [batch(rows, length)],
            steps=steps,
            recipe=Recipe(1e-3),
            seed=seed,
            device="cpu",
            measured_step=measured,
        )
    finally:
        resident.detach()


def test_the_same_seed_gives_the_same_losses_and_the_same_peak(bert_run):
    one, other = trained(bert_run, values={"lora.dropout": 0.1}), trained(bert_run, values={"lora.dropout": 0.1})
    assert one.losses == other.losses
    assert one.peak_bytes == other.peak_bytes
    assert one.memory_kind == "tensor_storage"
    assert trained(bert_run, seed=1, values={"lora.dropout": 0.1}).losses != one.losses


def test_measuring_changes_no_loss(bert_run):
    assert trained(bert_run, measured=1).losses == trained(bert_run, measured=99).losses


def test_memory_grows_with_rows_with_length_and_with_rank(bert_run):
    peaks = [trained(bert_run, rows=rows).peak_bytes for rows in (2, 4, 8, 16)]
    assert peaks == sorted(set(peaks))
    lengths = [trained(bert_run, length=length).peak_bytes for length in (6, 12, 24)]
    assert lengths == sorted(set(lengths))
    ranks = [trained(bert_run, values={"lora.rank": rank}).peak_bytes for rank in (1, 8, 64)]
    assert ranks == sorted(set(ranks))


def test_the_peak_holds_base_adapter_gradients_and_both_moments(bert_run):
    resident, anatomy = bert_run
    base = sum(t.untyped_storage().nbytes() for t in tensors_of(resident.model).values())
    plan = plan_of(Candidate({"method": "lora", "bits": 32, "lora.rank": 64}), anatomy)
    own = 4 * (plan.adapter_params + anatomy.head_params)
    assert trained(bert_run, rows=1, length=1, values={"lora.rank": 64}).peak_bytes >= base + 4 * own


def test_a_training_that_fails_midway_leaves_the_base_clean(bert_run):
    resident, anatomy = bert_run
    before = checksum(resident.model)
    plan = plan_of(Candidate({"method": "lora", "bits": 32, "lora.rank": 4}), anatomy)
    adapted = resident.attach(plan, task="text-classification", head=anatomy.head)

    def parts_at(step):
        if step == 2:
            raise RuntimeError("lost the data")
        return [batch(4)]

    with pytest.raises(RuntimeError, match="lost the data"):
        train(adapted, parts_at=parts_at, steps=4, recipe=Recipe(1e-3), seed=0, device="cpu", measured_step=1)
    resident.detach()
    assert checksum(resident.model) == before
    assert not any("lora" in name for name, _ in resident.model.named_modules())
    assert all(p.grad is None and not p.requires_grad for p in resident.model.parameters())
