"""How LoRA begins: what it takes out of the base is put back, and what is saved goes on the base as it was."""

from __future__ import annotations

import bitsandbytes as bnb
import peft
import pytest
import torch
from families import batch_of

from autopeft.candidates import BaseFormat, Candidate
from autopeft.errors import TrialError
from autopeft.methods import METHODS
from autopeft.methods.merging import why_unmergeable
from autopeft.plans import plan_of, unfit
from autopeft.trial.adapters import Resident
from autopeft.trial.model import checksum, load_base

TASK = "causal-lm"
RANKS = {"lora.rank[0]": 2, "lora.rank[1-9]": 4}


@pytest.fixture(params=[32, 16])
def resident(request, source_of):
    return Resident(load_base(source_of("llama", TASK), BaseFormat(request.param), device="cpu"))


def plan_for(anatomy, init, **others):
    return plan_of(Candidate({"method": "lora", **RANKS, "lora.init": init, **others}), anatomy)


def logits_of(model):
    inputs = {k: v for k, v in batch_of(TASK).items() if k != "labels"}
    with torch.no_grad():
        return model.eval()(**inputs).logits.float()


def moved(adapted):
    """Move everything that is trained, as a training does."""
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_what_is_saved_is_what_was_trained_and_goes_on_the_base_as_it_was(
    init, rslora, resident, source_of, llama, tmp_path
):
    before, base = checksum(resident.model), logits_of(resident.model)
    torch.manual_seed(0)
    plan = plan_for(llama, init, **{"lora.rslora": rslora})
    adapted = resident.attach(plan, task=TASK, head={})
    bits16 = resident.model.dtype == torch.bfloat16
    # A residual in bf16 keeps 8 bits of each weight, and so do the logits.
    tolerance = 0.05 if bits16 else 1e-5
    assert (logits_of(adapted) - base).norm() <= tolerance * base.norm()
    assert checksum(resident.model) != before  # a part of each weight is taken out
    moved(adapted)
    trained = logits_of(adapted)
    assert (trained - base).norm() > 2 * tolerance * base.norm()
    resident.settle(adapted)
    settled = logits_of(adapted)
    assert (settled - trained).norm() <= tolerance * trained.norm()
    adapted.save_pretrained(str(tmp_path))
    resident.detach()
    assert checksum(resident.model) == before
    fresh = load_base(source_of("llama", TASK), BaseFormat(16 if bits16 else 32), device="cpu")
    loaded = peft.PeftModel.from_pretrained(fresh, str(tmp_path))
    assert torch.equal(logits_of(loaded), settled)


def test_detaching_before_the_end_puts_back_what_was_taken_out(resident, llama):
    before = checksum(resident.model)
    for changes in ({"lora.init": "olora"}, {"lora.bias": "linears"}):
        adapted = resident.attach(plan_of(Candidate({"method": "lora", **changes}), llama), task=TASK, head={})
        moved(adapted)
        resident.detach()
        assert checksum(resident.model) == before


def test_what_was_taken_out_waits_on_the_host(resident, llama):
    resident.attach(plan_for(llama, "pissa"), task=TASK, head={})
    assert resident._copies
    assert {copy.device.type for copy in resident._copies.values()} == {"cpu"}
    resident.detach()


def test_loftq_is_not_merged_into_weights_that_lost_nothing(llama):
    plan = plan_for(llama, "loftq", bits=4)
    assert "rounding of the quantised base" in why_unmergeable(plan)
    assert not why_unmergeable(plan_for(llama, "eva", bits=4))


def test_trained_biases_are_put_back(source_of, bert):
    resident = Resident(load_base(source_of("bert", bert.task), BaseFormat(32), device="cpu"))
    before = checksum(resident.model)
    plan = plan_of(Candidate({"method": "lora", "lora.rank": 2, "lora.bias": "linears"}), bert)
    adapted = resident.attach(plan, task=bert.task, head=bert.head)
    assert any(n.endswith("base_layer.bias") and p.requires_grad for n, p in adapted.named_parameters())
    moved(adapted)
    resident.detach()
    assert checksum(resident.model) == before


def test_eva_begins_along_the_inputs_that_vary_most(source_of, llama):
    """The oracle is the whole singular value decomposition of all inputs that are not padding."""
    batches = [batch_of(TASK), {**batch_of(TASK, rows=3, length=20)}]
    batches[1]["attention_mask"][0, 11:] = 0
    model = load_base(source_of("llama", TASK), BaseFormat(32), device="cpu")
    inputs: dict[str, list[torch.Tensor]] = {linear.name: [] for linear in llama.linears}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: inputs[name].append(args[0])
        )
        for name in inputs
    ]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for handle in handles:
        handle.remove()
    adapted = Resident(model).attach(plan_for(llama, "eva"), task=TASK, head={}, sample=batches)
    for name, seen in inputs.items():
        rows = torch.cat([x[b["attention_mask"].bool()] for x, b in zip(seen, batches, strict=True)])
        a = adapted.get_base_model().get_submodule(name).lora_A["default"].weight
        best = torch.linalg.svd(rows, full_matrices=False).S[: len(a)].square().sum()
        caught = (rows @ torch.linalg.svd(a, full_matrices=False).Vh.T).square().sum()
        assert 0.98 * best <= caught <= 1.0001 * best
        torch.testing.assert_close(a.norm(dim=1), torch.ones(len(a)))


def test_eva_needs_as_many_tokens_as_directions(source_of, llama):
    resident = Resident(load_base(source_of("llama", TASK), BaseFormat(32), device="cpu"))
    plan = plan_of(Candidate({"method": "lora", "lora.rank": 8, "lora.init": "eva"}), llama)
    for sample in ([], [batch_of(TASK, rows=1, length=5)]):
        with pytest.raises(TrialError, match=r"eva: .* rank 8 needs more"):
            resident.attach(plan, task=TASK, head={}, sample=sample)
        resident.detach()


@pytest.mark.parametrize("form", [BaseFormat(4), BaseFormat(4, "fp4", double_quant=False)])
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_loftq_begins_with_most_of_what_quantisation_took(family, form, source_of, anatomy_of):
    """The best product of a rank leaves the singular values beyond it (Eckart and Young), and is nearly reached."""
    task = "seq2seq-lm" if family == "t5" else TASK
    source, anatomy = source_of(family, task), anatomy_of(family, task)
    quantised = Resident(load_base(source, form, device="cpu"))
    dense = load_base(source, BaseFormat(32), device="cpu")
    before = checksum(quantised.model)
    values = {"method": "lora", "lora.rank": 8, "lora.init": "loftq", "lora.alpha": "2r", "bits": 4}
    adapted = quantised.attach(plan_of(Candidate(values), anatomy), task=task, head={}, dense=lambda: dense)
    layers = {n: m for n, m in adapted.get_base_model().named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert len(layers) == len(anatomy.linears)
    for name, layer in layers.items():
        held = layer.get_base_layer().weight
        if not hasattr(held, "quant_state"):
            # transformers keeps one linear of T5's feed-forward as it is; there the product begins at zero.
            assert family == "t5"
            assert name.endswith(".wo")
            assert not layer.get_delta_weight("default").any()
            continue
        kept = bnb.functional.dequantize_4bit(held.data, held.quant_state).float()
        original = dense.get_submodule(name).weight.T if family == "gpt2" else dense.get_submodule(name).weight
        left = torch.linalg.svdvals(original - kept)
        product = layer.get_delta_weight("default")
        assert (original - kept - product).norm() <= 1.02 * left[8:].norm() < left.norm()
    quantised.detach()
    assert checksum(quantised.model) == before


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"lora.init": "pissa", "bits": 4}, "does not go with a quantised base"),
        ({"lora.init": "olora", "lora.dora": True}, "goes neither with DoRA nor with a bias"),
        ({"lora.init": "orthogonal", "lora.rank": 3}, "needs even ranks"),
        ({"lora.init": "loftq", "bits": 16}, "choose bits 4"),
        ({"lora.init": "loftq", "bits": 4, "lora.dora": True}, "does not go with DoRA"),
        ({"lora.init": "pissa", "lora.rank": 40}, "has no 40 directions in"),
        ({"lora.bias": "product"}, "cannot be merged into linears that have none"),
    ],
)
def test_what_cannot_begin_so_is_refused(values, reason, llama):
    assert reason in unfit(Candidate({"method": "lora", "bits": 32, **values}), llama)


def test_an_unknown_beginning_is_not_allowed():
    assert not METHODS["lora"].allowed["init"]("zeros")
    assert not METHODS["lora"].allowed["bias"]("all")
