"""The operations counted from shapes are those that PyTorch counts while the real model runs."""

from __future__ import annotations

import pytest
import torch
from families import PAIRS, batch_of
from torch.utils.flop_counter import FlopCounterMode

from autopeft.candidates import BaseFormat, Candidate
from autopeft.compute import lowest_layer, training_flops
from autopeft.plans import plan_of
from autopeft.trial.adapters import Resident
from autopeft.trial.model import load_base

ROWS, LENGTH = 4, 12
CONFIGURATIONS = [
    {"method": "lora", "lora.rank": 1},
    {"method": "lora", "lora.rank[0]": 0, "lora.rank[1]": 0, "lora.rank[2-9]": 1},
    {"method": "ia3"},
    {"method": "ln_tuning", "ln_tuning.outer": False, "ln_tuning.layers[0]": 0, "ln_tuning.layers[1-9]": 1},
    {"method": "full"},
    {"method": "top_layers", "top_layers.top": 1},
]


@pytest.mark.parametrize("values", CONFIGURATIONS)
@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_the_count_is_that_of_a_real_step(family, task, values, source_of, anatomy_of):
    """The lowest adapted layer is counted whole, though nothing goes back to its inputs: of two layers that is much."""
    anatomy, source = anatomy_of(family, task), source_of(family, task)
    plan = plan_of(Candidate(values), anatomy)
    adapted = Resident(load_base(source, BaseFormat(32), device="cpu")).attach(plan, task=task, head=anatomy.head)
    adapted.train()
    torch.manual_seed(0)
    with FlopCounterMode(display=False) as counter:
        adapted(**batch_of(task, rows=ROWS, length=LENGTH)).loss.backward()
    real = counter.get_total_flops()
    assert training_flops(anatomy, plan, rows=ROWS, length=LENGTH) == pytest.approx(real, rel=0.15)


def test_the_lowest_layer(anatomy_of):
    anatomy = anatomy_of("llama", "causal-lm")

    def lowest(**values):
        return lowest_layer(anatomy, plan_of(Candidate({k.replace("__", "."): v for k, v in values.items()}), anatomy))

    assert lowest(method="lora") == 0
    assert lowest(method="lora", **{"lora.rank[1-2]": 4}) == 1
    assert lowest(method="prompt_tuning") == 0
    assert lowest(method="lora+prompt", **{"lora+prompt.lora.rank[0]": 0, "lora+prompt.lora.rank[1-9]": 4}) == 0
    assert lowest(method="top_layers", **{"top_layers.top": 1}) == anatomy.n_layers - 1
    assert lowest(method="ln_tuning", **{"ln_tuning.layers[2]": 1}) == 2
    assert lowest(method="ln_tuning", **{"ln_tuning.layers[0]": 0}) == anatomy.n_layers
