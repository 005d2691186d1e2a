"""AdaLoRA's ranks really move, end at the budget, and are saved as they are judged."""

from __future__ import annotations

import peft
import pytest
import torch
from families import batch_of
from safetensors.torch import load_file

from autopeft.candidates import BaseFormat, Candidate, Recipe
from autopeft.plans import plan_of
from autopeft.trial.adapters import Resident
from autopeft.trial.model import checksum, load_base
from autopeft.trial.train import train

TASK = "text-classification"


def logits_of(model):
    inputs = {k: v for k, v in batch_of(TASK).items() if k != "labels"}
    with torch.no_grad():
        return model.eval()(**inputs).logits


def trained(resident, anatomy, steps):
    torch.manual_seed(0)
    plan = plan_of(Candidate({"method": "adalora", "adalora.rank": 2}), anatomy)
    adapted = resident.attach(plan, task=TASK, head=anatomy.head)
    train(
        adapted,
        parts_at=lambda step: [batch_of(TASK)],
        steps=steps,
        recipe=Recipe(1e-2),
        seed=0,
        device="cpu",
        measured_step=0,
    )
    return adapted


@pytest.mark.parametrize("bits", [32, 16])
@pytest.mark.parametrize("steps", [2, 5, 20])
def test_the_ranks_end_at_the_budget_and_are_saved_as_judged(bits, steps, source_of, bert, tmp_path):
    resident = Resident(load_base(source_of("bert", TASK), BaseFormat(bits), device="cpu"))
    before = checksum(resident.model)
    adapted = trained(resident, bert, steps)
    judged = logits_of(adapted)
    adapted.save_pretrained(str(tmp_path))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    ranks = [tensor.shape[0] for name, tensor in saved.items() if "lora_A" in name]
    assert sum(ranks) == 2 * len(bert.linears)  # of three to begin with
    assert len(set(ranks)) > 1
    resident.detach()
    assert checksum(resident.model) == before
    loaded = peft.PeftModel.from_pretrained(
        load_base(source_of("bert", TASK), BaseFormat(bits), device="cpu"), str(tmp_path)
    )
    assert torch.equal(logits_of(loaded), judged)


def test_one_step_is_too_short_to_allocate_anything(source_of, bert):
    adapted = trained(Resident(load_base(source_of("bert", TASK), BaseFormat(32), device="cpu")), bert, 1)
    assert {m.r["default"] for m in adapted.modules() if hasattr(m, "lora_E")} == {3}


def test_the_number_that_says_the_rank_is_not_trained(source_of, bert):
    resident = Resident(load_base(source_of("bert", TASK), BaseFormat(16), device="cpu"))
    plan = plan_of(Candidate({"method": "adalora"}), bert)
    adapted = resident.attach(plan, task=TASK, head=bert.head)
    assert not any(p.requires_grad for n, p in adapted.named_parameters() if ".ranknum." in n)
