"""Every method of the installed PEFT is offered, or is named with a reason that still holds."""

from __future__ import annotations

import math

import peft
import pytest
import torch
from families import batch_of

from autopeft.methods import METHODS
from autopeft.methods.not_offered import NOT_OFFERED
from autopeft.problem import plan_of
from autopeft.records import BaseFormat, Candidate
from autopeft.trial.model import load_base

MORE = {
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 5, "num_tasks": 1},
    "POLY": {"r": 4, "n_tasks": 1, "target_modules": ["q_proj"]},
    "XLORA": {"hidden_size": 64, "adapters": {}},
    "CPT": {"cpt_token_ids": [3, 4, 5]},
    "SHADOW": {"r": 4},
    "PSOFT": {"r": 4, "target_modules": ["q_proj"]},
    "ADAMSS": {"r": 32, "num_subspaces": 16, "target_modules": ["q_proj", "up_proj", "down_proj"]},
    "LILY": {"r": 4, "target_modules": ["q_proj"]},
}


@pytest.fixture
def adapted(source_of):
    """Give a small Llama with a method of PEFT on it: name -> model."""

    def adapt(peft_type):
        base = load_base(source_of("llama", "causal-lm"), BaseFormat(32), device="cpu")
        kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[peft_type]]
        torch.manual_seed(0)
        return peft.get_peft_model(base, kind(task_type="CAUSAL_LM", **MORE[peft_type])).train()

    return adapt


def test_every_method_of_peft_is_offered_or_named_with_a_reason(llama):
    offered = {plan_of(Candidate({"method": name}), llama).config.get("peft_type") for name in METHODS} - {None}
    named = [method.peft_type for method in NOT_OFFERED]
    assert len(named) == len(set(named))
    assert not offered & set(named)
    assert offered | set(named) == {member.value for member in peft.PeftType}


@pytest.mark.parametrize("peft_type", ["MULTITASK_PROMPT_TUNING", "POLY"])
def test_multitask_methods_fail_without_task_ids(peft_type, adapted):
    with pytest.raises(ValueError, match=r"task_ids (cannot|should not) be None"):
        adapted(peft_type)(**batch_of("causal-lm"))


def test_x_lora_without_adapters_trains_nothing(adapted):
    model = adapted("XLORA")
    assert any(p.requires_grad for p in model.parameters())
    assert not model(**batch_of("causal-lm")).loss.requires_grad


def test_the_loss_of_cpt_without_marks_is_not_a_number(adapted):
    assert math.isnan(adapted("CPT")(**batch_of("causal-lm")).loss.item())


def test_how_much_adamss_trains_depends_on_the_weights(source_of):
    def trained(rows):
        base = load_base(source_of("llama", "causal-lm"), BaseFormat(32), device="cpu")
        for name, module in base.named_modules():
            if name.endswith("q_proj"):
                module.weight.data[rows:] = module.weight.data[:1]
        config = peft.AdamssConfig(r=8, num_subspaces=3, subspace_rank=2, target_modules=["q_proj"])
        return sum(p.numel() for p in peft.get_peft_model(base, config).parameters() if p.requires_grad)

    assert trained(1) != trained(64)


def test_lily_shares_nothing_between_modules_that_are_named_whole(source_of):
    def trained(names):
        base = load_base(source_of("llama", "causal-lm"), BaseFormat(32), device="cpu")
        config = peft.LilyConfig(r=4, stride_A=3, target_modules=names)
        return sum(p.numel() for p in peft.get_peft_model(base, config).parameters() if p.requires_grad)

    whole = [f"model.layers.{i}.self_attn.q_proj" for i in range(3)]
    assert trained(whole) == 3 * trained(whole[:1]) > trained(["q_proj"])


def test_parts_of_shadow_never_get_a_gradient(adapted):
    model = adapted("SHADOW")
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    still = set(trained)
    for _ in range(4):
        model(**batch_of("causal-lm")).loss.backward()
        still -= {n for n, p in trained.items() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
        optimizer.zero_grad()
    assert still
    assert all(".layers.2." in name for name in still)


def test_psoft_depends_on_signs_that_it_does_not_save(adapted):
    model = adapted("PSOFT").eval()
    assert not any("cache" in name for name in peft.get_peft_model_state_dict(model))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    before = model(**batch_of("causal-lm")).logits
    for layer in model.modules():
        if hasattr(layer, "_psoft_A_cache"):  # as good a singular value decomposition of the same weight
            layer._psoft_A_cache["default"][0] *= -1
            layer._psoft_B_cache["default"][:, 0] *= -1
    assert not torch.allclose(model(**batch_of("causal-lm")).logits, before, atol=1e-3)


def test_the_clusters_of_adamss_are_others_on_a_base_of_other_bits(source_of):
    found = []
    for bits in (32, 16):
        base = load_base(source_of("llama", "causal-lm"), bits=bits, device="cpu")
        model = peft.get_peft_model(base, peft.AdamssConfig(task_type="CAUSAL_LM", **MORE["ADAMSS"]))
        assert not any("scatter" in name or "seg" in name for name in peft.get_peft_model_state_dict(model))
        found.append([m.scatter_index["default"].tolist() for m in model.modules() if hasattr(m, "scatter_index")])
    assert found[0] != found[1]


def test_an_answer_of_lily_depends_on_what_else_is_in_the_batch(adapted):
    model = adapted("LILY").eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    ids = batch_of("causal-lm")["input_ids"]
    together, alone = model(input_ids=ids).logits[0], model(input_ids=ids[:1]).logits[0]
    assert not torch.allclose(together, alone, atol=1e-4)
