"""The size of an adapter's file, told before anything is trained, is that of the file."""

from __future__ import annotations

import pytest
from configurations import candidates
from safetensors import safe_open

from autopeft.methods import METHODS
from autopeft.plans import plan_of, unfit
from autopeft.trial.adapters import Resident, save_adapter
from autopeft.trial.model import load_base, load_config
from autopeft.trial.prediction import MemoryPredictor


def _bytes_in(folder):
    (file,) = folder.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        tensors = [opened.get_tensor(key) for key in opened.keys()]  # noqa: SIM118 - it is no dict
    return sum(t.numel() * t.element_size() for t in tensors)


PAIRS = (("bert", "text-classification"), ("llama", "causal-lm"))
"""With a new head, which is saved too, and without."""


def _cases():
    """Give each method with one of the pairs that it is for, as a trace takes half a second; the commonest with all."""
    for i, (name, method) in enumerate(METHODS.items()):
        pairs = [pair for pair in PAIRS if pair[1] in method.tasks]
        for pair in pairs if name in ("lora", "ia3") else pairs[i % len(pairs or PAIRS) :][:1]:
            yield name, *pair


@pytest.mark.parametrize(("method", "family", "task"), list(_cases()))
def test_the_saved_bytes_are_those_of_the_file(method, family, task, source_of, anatomy_of, tmp_path):
    anatomy, source = anatomy_of(family, task), source_of(family, task)
    fitting = [c for c in candidates(method) if not unfit(c, anatomy)]
    if not fitting:
        pytest.skip("refused")
    plan = plan_of(fitting[0], anatomy)
    predicted = MemoryPredictor(load_config(source), anatomy, length=8).trace(plan).saved_bytes
    resident = Resident(load_base(source, plan.base, device="cpu"))
    adapted = resident.attach(plan, task=task, head=anatomy.head)
    save_adapter(adapted, tmp_path / "adapter", about={"plan": plan.to_dict()})
    assert predicted == _bytes_in(tmp_path / "adapter")
