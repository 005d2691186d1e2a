"""Every method of the installed PEFT is offered, or is named with a reason that still holds."""

from __future__ import annotations

import math

import peft
import pytest
import torch
from families import batch_of
from signs import other_signs

from autopeft.candidates import BaseFormat, Candidate
from autopeft.methods import METHODS
from autopeft.methods.not_offered import NOT_OFFERED
from autopeft.plans import plan_of
from autopeft.trial.model import load_base

MORE = {
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 5, "num_tasks": 1},
    "POLY": {"r": 4, "n_tasks": 1, "target_modules": ["q_proj"]},
    "XLORA": {"hidden_size": 64, "adapters": {}},
    "CPT": {"cpt_token_ids": [3, 4, 5]},
    "SHADOW": {"r": 4},
    "PSOFT": {"r": 4, "target_modules": ["q_proj"]},
    "FROD": {"target_modules": ["q_proj"], "progressbar": False},
    "DEFT": {"r": 4, "target_modules": ["q_proj"], "decomposition_method": "qr"},
    "ADAMSS": {"r": 32, "num_subspaces": 16, "target_modules": ["q_proj", "up_proj", "down_proj"]},
    "LILY": {"r": 4, "target_modules": ["q_proj"]},
    "LORA": {"r": 4, "target_modules": ["q_proj"]},
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
    named = [method.peft_type for method in NOT_OFFERED if not method.option]
    assert {method.peft_type for method in NOT_OFFERED if method.option} <= offered
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


@pytest.mark.parametrize(("peft_type", "same"), [("PSOFT", False), ("FROD", False), ("DEFT", False), ("LORA", True)])
def test_what_is_decomposed_anew_depends_on_signs_that_are_not_saved(peft_type, same, adapted, source_of, tmp_path):
    model, generator = adapted(peft_type).eval(), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path)
    base = load_base(source_of("llama", "causal-lm"), BaseFormat(32), device="cpu")
    with torch.no_grad():
        saved = model(**batch_of("causal-lm")).logits
        with other_signs():
            loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()(**batch_of("causal-lm")).logits
    assert torch.allclose(saved, loaded, atol=1e-4) == same


@pytest.fixture
def linear_with(source_of):
    """Give a linear of a small Llama with LoRA, and its weight before: fields of the configuration -> both."""

    def adapt(**fields):
        base = load_base(source_of("llama", "causal-lm"), BaseFormat(32), device="cpu")
        before = base.model.layers[0].self_attn.q_proj.weight.detach().clone()
        model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"], **fields))
        return model.base_model.model.model.layers[0].self_attn.q_proj, before

    return adapt


def test_corda_fails_without_what_is_computed_before(linear_with):
    with pytest.raises(ValueError, match="run `preprocess_corda` first"):
        linear_with(init_lora_weights="corda")


def test_lora_ga_without_gradients_begins_as_plain_lora(linear_with):
    layer, before = linear_with(init_lora_weights="lora_ga", lora_ga_config=peft.LoraGAConfig())
    assert not layer.lora_B["default"].weight.any()
    assert torch.equal(layer.base_layer.weight, before)


def test_mica_trains_one_factor(linear_with):
    layer, _ = linear_with(init_lora_weights="mica")
    assert layer.lora_A["default"].weight.requires_grad
    assert not layer.lora_B["default"].weight.requires_grad


def test_all_biases_are_also_those_of_what_is_not_adapted(source_of):
    base = load_base(source_of("bert", "text-classification"), BaseFormat(32), device="cpu")
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["query"], bias="all"))
    trained = [name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name]
    assert any("LayerNorm.bias" in name for name in trained)


def test_the_clusters_of_adamss_are_others_on_a_base_of_other_bits(source_of):
    found = []
    for bits in (32, 16):
        base = load_base(source_of("llama", "causal-lm"), BaseFormat(bits), device="cpu")
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
