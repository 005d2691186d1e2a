"""What every method keeps: its count is the real model's, it is the adapter intended, and it leaves no trace."""

from __future__ import annotations

import math
import re

import peft
import pytest
import torch
from architectures import ARCHITECTURES, SMALL
from configurations import MAY_REST, OTHERS, candidates, cases, intended_rank
from families import AUTO_CLASSES, LABELS, PAIRS, TOKENS, batch_of
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer

from autopeft.candidates import BaseFormat, Candidate
from autopeft.methods import METHODS
from autopeft.plans import plan_of, unfit
from autopeft.space import settings_of
from autopeft.trial.adapters import Resident, peft_config
from autopeft.trial.compose import PEFT_TASKS
from autopeft.trial.model import ModelSource, checksum, load_base, tensors_of
from autopeft.trial.reading import read_anatomy

CASES = list(cases(PAIRS))
STEP = 0.05
ROUGH = {("deft", 1): 2e-2}
"""Of whole rank, DEFT takes out of a weight and puts back a product that is much larger than the weight."""


def fresh_adapted(source, plan, anatomy):
    """Build the real PEFT model on a new base with PEFT's own functions, without the code that is under test.

    What PEFT has not is attached by our own code; `test_own` and `test_hybrids` count it by hand.
    """
    if "peft_type" not in plan.config:
        return Resident(load_base(source, BaseFormat(32), device="cpu")).attach(
            plan, task=source.task, head=anatomy.head
        )
    fields = dict(plan.config)
    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[fields.pop("peft_type")]
    if anatomy.head and "target_modules" in fields:
        fields["modules_to_save"] = list(anatomy.head)
    torch.manual_seed(0)
    base = AUTO_CLASSES[source.task].from_pretrained(source.path)
    return peft.get_peft_model(base, kind(task_type=PEFT_TASKS[source.task], **fields))


def copied(model):
    return {name: tensor.detach().clone() for name, tensor in tensors_of(model).items()}


def same_tensors(model, copies):
    now = tensors_of(model)
    return now.keys() == copies.keys() and all(torch.equal(now[name], copies[name]) for name in copies)


def logits_of(model, task):
    """Give the logits of the batch's own tokens; prompt tuning gives some for its virtual ones too."""
    inputs = {k: v for k, v in batch_of(task).items() if k != "labels" or task == "seq2seq-lm"}
    with torch.no_grad():
        logits = model(**inputs).logits
    return logits[:, -inputs["input_ids"].shape[1] :] if task == "causal-lm" else logits


def train_step(adapted, task):
    """One plain SGD step on everything that requires gradients; gives the loss."""
    adapted.train()
    loss = adapted(**batch_of(task)).loss
    loss.backward()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad and parameter.grad is not None:
                parameter -= STEP * parameter.grad
    return loss.item()


@pytest.mark.parametrize(("family", "task", "method", "i"), CASES)
def test_the_count_is_that_of_the_real_model(family, task, method, i, source_of, anatomy_of):
    anatomy = anatomy_of(family, task)
    candidate = candidates(method)[i]
    plan = plan_of(candidate, anatomy)
    refused = unfit(candidate, anatomy)
    if refused and "+" in method:
        pytest.skip("refused for what one part would not do, which is tested on that part alone")
    try:
        adapted = fresh_adapted(source_of(family, task), plan, anatomy)
    except (TypeError, ValueError, NotImplementedError):
        assert refused
        return
    trained = {name: p.numel() for name, p in adapted.named_parameters() if p.requires_grad}
    in_head = sum(n for name, n in trained.items() if any(f".{head}." in f".{name}" for head in anatomy.head))
    # What PEFT builds is refused where it would leave the new head untrained, or leaves linears out without a word.
    right = in_head == anatomy.head_params and sum(trained.values()) - in_head == plan.adapter_params > 0
    assert right == (not refused), refused


@pytest.mark.parametrize(("family", "task", "method", "i"), CASES)
def test_a_step_moves_everything_trained_and_nothing_of_the_base(family, task, method, i, resident_of, anatomy_of):
    anatomy, resident = anatomy_of(family, task), resident_of(family, task)
    candidate = candidates(method)[i]
    if unfit(candidate, anatomy):
        pytest.skip("refused")
    before, copies, logits = checksum(resident.model), copied(resident.model), logits_of(resident.model, task)
    torch.manual_seed(0)
    try:
        adapted = resident.attach(plan_of(candidate, anatomy), task=task, head=anatomy.head)
        start = logits_of(adapted, task)
        if METHODS[method].starts_at_identity:
            torch.testing.assert_close(start, logits, rtol=1e-5, atol=ROUGH.get((method, i), 5e-6))
        elif i == 0:  # in others a part of a hybrid may be off
            assert not torch.equal(start, logits)
        still = {n for n, p in adapted.named_parameters() if p.requires_grad}
        for _ in range(2):
            # Of a product that starts at zero one factor has a gradient from the second step on.
            assert math.isfinite(train_step(adapted, task))
            still -= {n for n in still if (g := adapted.get_parameter(n).grad) is not None and g.abs().max() > 0}
        assert not {n for n in still if not any(rests in n for rests in MAY_REST)}
        frozen = {n: p for n, p in adapted.named_parameters() if not p.requires_grad}
        assert all(p.grad is None for p in frozen.values())
        assert not torch.equal(logits_of(adapted.eval(), task), start)
    finally:
        resident.detach()
    assert checksum(resident.model) == before
    assert same_tensors(resident.model, copies)
    assert torch.equal(logits_of(resident.model, task), logits)
    assert not any(p.requires_grad or p.grad is not None for p in resident.model.parameters())
    assert not any(type(m).__module__.startswith(("peft.", "autopeft.")) for m in resident.model.modules())


@pytest.mark.parametrize(("family", "task", "method", "i"), [c for c in CASES if c[2] == "lora"])
def test_lora_has_the_intended_rank_and_scaling_at_every_linear(family, task, method, i, source_of, anatomy_of):
    anatomy = anatomy_of(family, task)
    candidate = candidates(method)[i]
    plan = plan_of(candidate, anatomy)
    adapted = fresh_adapted(source_of(family, task), plan, anatomy)
    found = {
        name: (module.lora_A["default"].weight.shape[0], module.scaling["default"], dict(module.lora_dropout.items()))
        for name, module in adapted.get_base_model().named_modules()
        if isinstance(module, LoraLayer)
    }
    intended = {x.name: rank for x in anatomy.linears if (rank := intended_rank(candidate, anatomy, x.name))}
    assert {name: rank for name, (rank, _, _) in found.items()} == intended == plan.sizes
    rule = candidate.values.get("lora.alpha", "2r")
    for rank, scaling, dropout in found.values():
        alpha = {"r": rank, "2r": 2 * rank}.get(rule) or float(rule)
        expected = alpha / math.sqrt(rank) if candidate.values.get("lora.rslora") else alpha / rank
        assert scaling == pytest.approx(expected)
        rate = getattr(dropout["default"], "p", 0.0)
        assert rate == candidate.values.get("lora.dropout", 0.0)


@pytest.mark.parametrize(("family", "task"), PAIRS)
@pytest.mark.parametrize("i", range(len(OTHERS["ia3"])))
def test_ia3_scales_the_input_of_what_narrows_and_the_output_of_the_rest(family, task, i, source_of, anatomy_of):
    anatomy = anatomy_of(family, task)
    plan = plan_of(candidates("ia3")[i], anatomy)
    adapted = fresh_adapted(source_of(family, task), plan, anatomy)
    found = {n: m for n, m in adapted.get_base_model().named_modules() if isinstance(m, IA3Layer)}
    assert found.keys() == plan.sizes.keys()
    kinds = {x.name: x for x in anatomy.linears}
    for name, module in found.items():
        narrows = kinds[name].fan_out < kinds[name].fan_in and kinds[name].kind == "down"
        assert module.is_feedforward == narrows
        assert module.ia3_l["default"].numel() == (kinds[name].fan_in if narrows else kinds[name].fan_out)


def test_dora_on_a_base_of_8_bits_is_refused_and_does_crash(source_of, bert):
    candidate = Candidate({"method": "lora", "bits": 8, "lora.rank": 4, "lora.dora": True})
    assert "DoRA does not train on an 8-bit base" in unfit(candidate, bert)
    resident = Resident(load_base(source_of("bert", bert.task), BaseFormat(8), device="cpu"))
    before = checksum(resident.model)
    adapted = resident.attach(plan_of(candidate, bert), task=bert.task, head=bert.head)
    train_step(adapted, bert.task)
    with pytest.raises(AttributeError):
        train_step(adapted, bert.task)
    resident.detach()
    assert checksum(resident.model) == before


def test_every_method_is_tried():
    """How often, and what is refused, is in docs/methods.md, which is written from these cases."""
    assert {method for _, _, method, _ in CASES} == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_where_it_comes_from_and_what_its_settings_are(method):
    m = METHODS[method]
    assert m.name == method
    assert any(mark in m.source for mark in ("arXiv:", "doi:", "openreview", "PEFT"))
    assert 0 < m.learning_rate < 1
    assert m.learning_rate_source
    assert m.settings.keys() == m.allowed.keys() >= m.spread.keys()
    assert method in OTHERS
    used = {key.partition("[")[0].partition(".")[2] for values in OTHERS[method] for key in values}
    assert used <= m.settings.keys()


def test_nothing_on_is_an_adapter_of_no_parameters(bert):
    for values in ({"method": "lora", "lora.rank": 0}, {"method": "ia3", "ia3.layers": 0}):
        plan = plan_of(Candidate(values), bert)
        assert (plan.adapter_params, plan.sizes) == (0, {})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_method_trains_on_every_architecture_or_is_refused(name, tmp_path):
    """One step: the adapter is the one planned, and everything that is trained gets a gradient."""
    architecture = ARCHITECTURES[name]
    config, task = architecture.config, architecture.task
    config.num_labels = len(LABELS)
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0
    torch.manual_seed(7)
    AUTO_CLASSES[task].from_config(config).save_pretrained(tmp_path)
    source = ModelSource(str(tmp_path), task, LABELS if task == "text-classification" else ())
    anatomy = read_anatomy(source).on_data(TOKENS)
    resident = Resident(load_base(source, BaseFormat(32), device="cpu"))
    before = checksum(resident.model)
    batch = batch_of(task)
    if task == "text-classification":  # an encoder-decoder's classifier looks for the end of the text
        batch["input_ids"][:, -1] = min(getattr(config, "eos_token_id", None) or 5, 5)
    for method in METHODS.values():
        if task not in method.tasks:
            continue
        if method.refuses(settings_of(Candidate(SMALL), method.name), 32, anatomy):
            assert architecture.refuses(method.name), method.name
            continue
        if (name, method.name) in KNOWN_FAILURES:
            continue
        plan = plan_of(Candidate({"method": method.name, "bits": 32, **SMALL}), anatomy)
        torch.manual_seed(0)
        try:
            adapted = resident.attach(plan, task=task, head=anatomy.head)
            adapted.train()
            adapted(**batch).loss.backward()
            without = [n for n, p in adapted.named_parameters() if p.requires_grad and p.grad is None]
            # Not every weight of a model is used by every batch.
            assert not without or method.reference, method.name
        finally:
            resident.detach()
        assert checksum(resident.model) == before


KNOWN_FAILURES = {
    ("longformer", "prompt_tuning"): "its positions are read off the tokens, which a prompt has not",
    ("longformer", "p_tuning"): "as above",
    ("longformer", "lora+prompt"): "as above",
}


def test_peft_gets_its_configuration_as_a_plan_says(bert):
    plan = plan_of(candidates("lora")[4], bert)
    config = peft_config(plan, task=bert.task, head=bert.head, base="a folder")
    assert config.modules_to_save == ["classifier"]
    assert config.base_model_name_or_path == "a folder"
    assert set(config.target_modules) == set(plan.sizes)
    for name, rank in plan.sizes.items():
        matched = [v for k, v in config.rank_pattern.items() if re.match(k, name)]
        assert (matched or [config.r]) == [rank]
