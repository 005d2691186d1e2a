"""Every method on bases of 16, 8 and 4 bits: it trains, its gradients are right, and the base stays what it was."""

from __future__ import annotations

from itertools import product

import bitsandbytes as bnb
import pytest
import torch
from configurations import EVERYWHERE, MAY_REST
from families import batch_of

from autopeft.candidates import BaseFormat, Candidate
from autopeft.methods import METHODS
from autopeft.plans import plan_of, unfit
from autopeft.trial.adapters import Resident
from autopeft.trial.compose import plain_name
from autopeft.trial.model import DTYPES, checksum, load_base, tensors_of
from autopeft.trial.train import train

PAIRS = [
    ("llama", "causal-lm"),
    ("llama", "text-classification"),
    ("bert", "text-classification"),
    ("t5", "seq2seq-lm"),
    ("bart", "seq2seq-lm"),
]
SMALL = {
    "gaussian": {"method": "lora", "lora.rank": 4, "lora.init": "gaussian", "lora.bias": "linears"},
    "shira": {"shira.rank": 2},
    "miss": {"miss.rank": 8},
    "bat": {"method": "miss", "miss.rank": 8, "miss.form": "bat"},
    "fourierft": {"fourierft.coefficients": 50},
}
"""Those whose own defaults do not fit such small weights, and a variant."""
CONFIGURATIONS = {
    "lora": {"lora.rank": 4},
    "dora": {"lora.rank": 4, "lora.dora": True},
    "rslora": {"lora.rank": 4, "lora.rslora": True, "lora.dropout": 0.1},
    **{name: {} for name in METHODS if name != "lora"},
    **SMALL,
}
AWAY = {"randlora": 0.002, "fourierft": 0.01, "waveft": 0.01}
"""How far these are moved from their start, and all others by 0.05. They multiply what is trained by 20 to 150, and a
step so large leaves a model whose gradients move by 3e-3 when its weights move by the rounding of fp32."""
FASTER = {"osf": 30.0, "pvera": 10.0, "supertuning": 30.0}
"""Multiples of the customary learning rate: with that alone, four steps move a loss in bf16 by less than it rounds."""
CASES = [
    (*pair, name, bits)
    for pair, name, bits in product(PAIRS, CONFIGURATIONS, (16, 8, 4))
    if name in (*EVERYWHERE, "dora", "rslora") or pair == PAIRS[-1]
]


def candidate_for(name, bits):
    method = "lora" if name in ("dora", "rslora") else name
    return Candidate({"method": method, **CONFIGURATIONS[name], "bits": bits, "lr_multiple": FASTER.get(name, 1.0)})


def plan_for(name, bits, anatomy):
    candidate = candidate_for(name, bits)
    if reason := unfit(candidate, anatomy):
        pytest.skip(reason)
    return plan_of(candidate, anatomy)


@pytest.mark.parametrize(("family", "task", "name", "bits"), CASES)
def test_a_short_training_goes_well_and_leaves_no_trace(family, task, name, bits, resident_of, anatomy_of):
    anatomy = anatomy_of(family, task)
    plan, resident = plan_for(name, bits, anatomy), resident_of(family, task, bits)
    before = checksum(resident.model)
    copies = {n: t.detach().clone() for n, t in tensors_of(resident.model).items()}
    torch.manual_seed(0)
    try:
        adapted = resident.attach(plan, task=task, head=anatomy.head)
        start = {n: p.detach().float().clone() for n, p in adapted.named_parameters() if p.requires_grad}
        training = train(
            adapted,
            parts_at=lambda step: [batch_of(task)],
            steps=4,
            recipe=plan.recipe,
            seed=0,
            device="cpu",
            measured_step=1,
        )
        after = dict(adapted.named_parameters())
        assert all(torch.isfinite(p).all() for p in after.values())
        moving = [n for n in start if after[n].dtype == torch.float32 and not any(rests in n for rests in MAY_REST)]
        assert all(not torch.equal(after[n].float(), start[n]) for n in moving)
        assert training.losses[-1] < training.losses[0]
        assert training.peak_bytes > sum(t.untyped_storage().nbytes() for t in copies.values())
    finally:
        resident.detach()
    assert checksum(resident.model) == before
    now = tensors_of(resident.model)
    # The scales of an int8 weight move from the weight to the module's state in the first forward pass.
    assert all(torch.equal(now[n], copies[n]) for n in copies)
    assert now.keys() == copies.keys()


def dense_twin(quantised, source):
    """Load the base in 32 bits and give it the weights that the quantised one stands for."""
    dense = load_base(source, BaseFormat(32), device="cpu")
    replaced = 0
    for name, module in quantised.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        elif isinstance(module, bnb.nn.Linear8bitLt):
            scales = module.weight.SCB if module.state.SCB is None else module.state.SCB
            weight = module.weight.data.float() * scales.view(-1, 1) / 127
        else:
            continue
        replaced += 1
        dense.get_submodule(name).weight.data.copy_(weight)
    assert replaced
    return dense


def gradients(resident, plan, anatomy, *, away):
    """One backward pass of the adapter away from its start; gives (logits, gradients)."""
    torch.manual_seed(0)
    try:
        adapted = resident.attach(plan, task=anatomy.task, head=anatomy.head)
        generator = torch.Generator().manual_seed(1)
        trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
        for parameter in trained.values():
            parameter.data += away * torch.randn(parameter.shape, generator=generator)
        adapted.train()
        torch.manual_seed(5)
        out = adapted(**batch_of(anatomy.task))
        out.loss.backward()
        # A bias of a quantised linear stands beside it; by its plain name it is the same.
        return out.logits.detach(), {plain_name(n): p.grad.clone() for n, p in trained.items()}
    finally:
        resident.detach()


FORMATS = {
    "int8": BaseFormat(8),
    "nf4": BaseFormat(4),
    "nf4 plain": BaseFormat(4, double_quant=False),
    "fp4": BaseFormat(4, "fp4"),
    "fp4 plain": BaseFormat(4, "fp4", double_quant=False),
}


@pytest.mark.parametrize(
    ("family", "task", "form"),
    # Formats of the same bits differ in nothing but how a weight is dequantised.
    [(*pair, form) for pair in PAIRS for form in FORMATS if form in ("int8", "nf4") or pair == PAIRS[-1]],
)
def test_gradients_on_a_quantised_base_are_those_on_its_dense_twin(family, task, form, source_of, anatomy_of):
    """On CPU both dequantise to fp32 and multiply in fp32, so only the order of the sums may differ.

    A relative error of 1e-4 in the norm of each tensor is some hundred roundings of fp32 (6e-8), and far below what a
    wrong scale or a repacked weight gives (of order 1).
    """
    anatomy, source, bits = anatomy_of(family, task), source_of(family, task), FORMATS[form].bits
    quantised = load_base(source, FORMATS[form], device="cpu")
    twin, resident = Resident(dense_twin(quantised, source)), Resident(quantised)
    compared, wrong = 0, []
    for name in CONFIGURATIONS:
        if unfit(candidate_for(name, bits), anatomy):
            continue
        plan, away = plan_for(name, bits, anatomy), AWAY.get(name, 0.05)
        logits, grads = gradients(resident, plan, anatomy, away=away)
        dense_logits, dense_grads = gradients(twin, plan, anatomy, away=away)
        assert grads.keys() == dense_grads.keys()
        pairs = {"logits": (logits, dense_logits), **{n: (grads[n], dense) for n, dense in dense_grads.items()}}
        # Attention does not change with the bias of its keys, whose gradient is the rounding of what cancels out.
        rounding = 1e-6 * max(dense.norm() for dense in dense_grads.values())
        wrong += [
            f"{name}, {what}: off by {(one - dense).norm():.1e} of {dense.norm():.1e}"
            for what, (one, dense) in pairs.items()
            if not (one - dense).norm() <= 1e-4 * dense.norm() + rounding
        ]
        compared += 1
    assert not wrong
    assert compared > len(CONFIGURATIONS) / 2


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_quantising_changes_the_linears_of_the_layers_and_nothing_else(family, task, resident_of, anatomy_of):
    anatomy = anatomy_of(family, task)
    for bits, kind in ((8, bnb.nn.Linear8bitLt), (4, bnb.nn.Linear4bit)):
        model = resident_of(family, task, bits).model
        found = {n for n, m in model.named_modules() if isinstance(m, kind)}
        # transformers keeps the last linear of T5's feed-forward in fp32, whose values overflow in fewer bits.
        kept = ".wo" if family == "t5" else "none"
        assert {x.name for x in anatomy.linears if not x.name.endswith(kept)} <= found
        assert not any(name.split(".")[0] in (*anatomy.head, "lm_head") for name in found)
        for module in model.modules():
            assert not getattr(module, "support_avx512bf16_for_cpu", False)


def test_a_base_of_16_bits_computes_in_bfloat16(resident_of):
    model = resident_of("llama", "causal-lm", 16).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_each_format_of_4_bits_is_another_base_of_the_size_that_it_says(source_of):
    source = source_of("llama", "causal-lm")
    found = {}
    for name, form in FORMATS.items():
        model = load_base(source, form, device="cpu")
        layers = [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
        found[name] = checksum(model)
        assert bool(layers) == (form.bits == 4)
        assert {m.weight.quant_state.quant_type for m in layers} <= {form.quant_type}
        assert {m.weight.quant_state.nested for m in layers} <= {form.double_quant}
        assert load_base(source, form, device="cpu").get_memory_footprint() == model.get_memory_footprint()
    assert len(set(found.values())) == len(FORMATS)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_a_base_holds_what_is_not_quantised_in_the_type_that_it_computes_in(bits, name, source_of):
    model = load_base(source_of("llama", "causal-lm"), BaseFormat(bits, compute_dtype=name), device="cpu")
    floats = {p.dtype for p in model.parameters() if p.is_floating_point()}
    assert floats == {DTYPES[name]}
    assert {m.compute_dtype for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)} <= {DTYPES[name]}


def test_the_new_head_is_the_same_whatever_the_bits(resident_of):
    heads = {bits: resident_of("bert", "text-classification", bits).model.classifier.weight for bits in (32, 16, 8, 4)}
    for bits in (8, 4):
        assert torch.equal(heads[bits], heads[32])
    assert torch.equal(heads[16], heads[32].bfloat16())
