"""What frozen layers give is computed once, and nobody can tell: beside a worker that computes all of it each time."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from architectures import ARCHITECTURES
from families import AUTO_CLASSES, PAIRS, TOKENS, batch_of
from safetensors.torch import load_file
from small_run import make_run_dir, make_unit, make_worker, pretrained

from autopeft.candidates import BaseFormat, Candidate
from autopeft.methods import METHODS
from autopeft.plans import plan_of, unfit
from autopeft.trial import worker as worker_module
from autopeft.trial.adapters import Resident
from autopeft.trial.frozen import FrozenLayers
from autopeft.trial.model import load_base
from autopeft.trial.reading import read_anatomy
from autopeft.trial.states import States

DECODERS = [pair for pair in PAIRS if pair[0] in ("llama", "gpt2")]
FAMILIES = [*DECODERS, ("bert", "text-classification")]
UPPER = {
    "top": {"method": "lora", "lora.rank[0-1]": 0, "lora.rank[2]": 4, "lora.dropout": 0.1},
    "upper": {"method": "lora", "lora.rank[0]": 0, "lora.rank[1-9]": 4},
    "adapter": {"method": "serial_adapter", "serial_adapter.layers[0]": 0, "serial_adapter.layers[1-9]": 1},
    "norm": {"method": "ln_tuning", "ln_tuning.layers[0-9]": 0},
}
SEVERAL = ("bart", "mt5", "pegasus")
"""Architectures with an encoder and a decoder."""
BELOW = {("ln_tuning", "bert"), ("bitfit", "bert")}
"""They also train the norm of the embedding."""


def told(measurement):
    return replace(measurement, train_seconds=0.0, eval_seconds=0.0)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Give what workers are made of: (family, task) -> (run directory, source, anatomy)."""

    @cache
    def made(family, task):
        source = pretrained(family, task, tmp_path_factory.mktemp("model"))
        return make_run_dir(tmp_path_factory.mktemp("run"), task), source, read_anatomy(source).on_data(TOKENS)

    return made


@pytest.fixture
def count_passes(monkeypatch):
    """Count the forward passes in which the first layer of a worker's base computed: a list that grows with each."""

    def counting(worker, unit):
        base = worker._bases.get(unit.plan.base)
        assert all(base.frozen._can_start_at(layer) for layer in (1, 2, 3))  # tried here, and not again
        assert base.frozen._after
        counted = []
        inner = next(base.resident.model.get_submodule(f"{base.frozen._stack}.0").children())
        kind, real = type(inner), type(inner).forward

        def forward(self, *args, **kwargs):
            counted.extend([1] if self is inner else [])
            return real(self, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", forward)
        return counted

    return counting


@pytest.mark.parametrize(("family", "task"), FAMILIES)
@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_trainings_are_bit_for_bit_those_that_compute_everything(family, task, bits, setting):
    run_dir, source, anatomy = setting(family, task)
    reusing, computing = make_worker(run_dir, source, anatomy), make_worker(run_dir, source, anatomy, reuse=False)
    for name, values in UPPER.items():
        units = [make_unit(anatomy, {**values, "bits": bits}, adapter_dir=f"{bits}/{name}-{i}") for i in (0, 1, 2)]
        alone = told(computing.run(units[2]))
        # The first one keeps, the second one reuses; memory is told of a training that reuses nothing.
        assert told(reusing.run(units[0])) == alone
        assert told(reusing.run(units[1])) == alone
        tensors = [load_file(next((run_dir / unit.adapter_dir).glob("*.safetensors"))) for unit in units]
        assert all(torch.equal(tensor, saved[key]) for saved in tensors[:2] for key, tensor in tensors[2].items())
    assert reusing._states.held_bytes > 0
    assert computing._states.held_bytes == 0


@pytest.mark.parametrize(("family", "task"), [pair for pair in DECODERS if pair[0] == "llama"])
def test_a_second_candidate_computes_the_frozen_layers_in_the_measured_step_only(family, task, setting, count_passes):
    run_dir, source, anatomy = setting(family, task)
    worker = make_worker(run_dir, source, anatomy)
    one = make_unit(anatomy, UPPER["top"], steps=5)
    worker.run(one)
    counted = count_passes(worker, one)
    worker.run(make_unit(anatomy, {**UPPER["top"], "lora.rank[2]": 8}, steps=5))
    assert len(counted) == 1
    counted.clear()
    worker.run(make_unit(anatomy, UPPER["upper"], steps=5))  # what layer 0 gives was not kept
    assert len(counted) == 5 + 1
    counted.clear()
    worker.run(make_unit(anatomy, UPPER["norm"], steps=5))  # from layer 2 on, whose input was
    assert len(counted) == 1


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_below_dropout_only_the_evaluation_reuses(family, setting, count_passes):
    run_dir, source, anatomy = setting(family, "text-classification")
    worker, unit = make_worker(run_dir, source, anatomy), make_unit(anatomy, UPPER["top"], steps=5)
    worker.run(unit)
    counted = count_passes(worker, unit)
    worker.run(unit)
    assert len(counted) == 5


@pytest.mark.parametrize(
    "recipe", [{"gradient_checkpointing": True}, {"packing": True}, {"gradient_accumulation_steps": 2}]
)
def test_no_recipe_changes_anything(recipe, setting):
    run_dir, source, anatomy = setting("llama", "causal-lm")
    unit = make_unit(anatomy, UPPER["upper"])
    unit = replace(unit, plan=replace(unit.plan, recipe=replace(unit.plan.recipe, **recipe)))
    worker = make_worker(run_dir, source, anatomy)
    alone = told(make_worker(run_dir, source, anatomy, reuse=False).run(unit))
    assert [told(worker.run(unit)) for _ in range(2)] == [alone, alone]
    assert len(worker._states._groups) == 2  # of the training and of the evaluation


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("bert", "text-classification")])
def test_nothing_is_trained_below_the_lowest_trained_layer(family, task, method, source_of, anatomy_of):
    """The oracle is autograd: what a layer gives needs a gradient if and only if something was trained on the way."""
    anatomy = anatomy_of(family, task)
    spread = METHODS[method].spread
    upper = {f"{method}.{field}[{layers}]": n for field in ("layers", "rank") for layers, n in (("0", 0), ("1-9", 1))}
    values = {n: v for n, v in upper.items() if "layers" in spread.get(n.partition(".")[2].partition("[")[0], ())}
    candidate = Candidate({"method": method, "bits": 32, **values})
    if reason := unfit(candidate, anatomy):
        pytest.skip(reason)
    resident = Resident(load_base(source_of(family, task), BaseFormat(32), device="cpu"))
    frozen = FrozenLayers(resident.model)
    adapted = resident.attach(plan_of(candidate, anatomy), task=task, head=anatomy.head)
    needs: list[bool] = []
    for layer in frozen._layers:
        layer.register_forward_hook(lambda module, args, output: needs.append(output.requires_grad))
    adapted.train()(**batch_of(task))
    assert frozen.lowest_trained(adapted) == (needs.index(True) if True in needs else len(needs))
    assert frozen.lowest_trained(adapted) > 0 or not values or (method, family) in BELOW or "+prefix" in method


LEFT_OUT = {
    "gpt-neo": "its layers give attention weights too", "gpt-j": "the same", "bloom": "the same", "mpt": "the same",
    "opt": "its pretrained model is called in parts", "opt, narrow embedding": "the same",
    "albert, shared layers": "one layer is all of them", "funnel": "layers in layers",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, a in ARCHITECTURES.items() if a.config.model_type not in SEVERAL])
def test_most_architectures_can_start_at_a_layer(name):
    torch.manual_seed(0)
    architecture = ARCHITECTURES[name]
    model = AUTO_CLASSES[architecture.task].from_config(architecture.config).eval().requires_grad_(False)
    model.config.use_cache = False
    frozen = FrozenLayers(model)
    assert frozen._can_start_at(1) == (name not in LEFT_OUT)
    assert name in LEFT_OUT or frozen._after


def test_a_model_that_sums_over_all_layers_cannot():
    """The balance of experts is a loss over the routers of every layer."""
    config = ARCHITECTURES["mixtral"].config
    model = AUTO_CLASSES["causal-lm"].from_config(config).eval().requires_grad_(False)
    model.config.output_router_logits = True
    assert not FrozenLayers(model)._can_start_at(1)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_is_left_alone(family, setting):
    run_dir, source, anatomy = setting(family, "seq2seq-lm")
    worker = make_worker(run_dir, source, anatomy)
    worker.run(make_unit(anatomy, {"method": "lora", "lora.rank[0-1]": 0, "lora.rank[2-9]": 4}))
    assert worker._states.held_bytes == 0


def test_generated_text_is_that_of_the_whole_model(source_of, anatomy_of):
    anatomy = anatomy_of("llama", "causal-lm")
    resident = Resident(load_base(source_of("llama", "causal-lm"), BaseFormat(32), device="cpu"))
    adapted = resident.attach(plan_of(Candidate({**UPPER["top"], "bits": 32}), anatomy), task="causal-lm", head={})
    prompt, states = batch_of("causal-lm")["input_ids"], States(limit_bytes=2**20)
    adapted.eval()
    alone = adapted.generate(input_ids=prompt, max_new_tokens=6, do_sample=False)
    frozen = FrozenLayers(resident.model)
    for _ in range(2):
        with frozen.reused(adapted, states, base="base"):
            assert torch.equal(adapted.generate(input_ids=prompt, max_new_tokens=6, do_sample=False), alone)


def test_other_tokens_other_masks_and_other_bases_have_states_of_their_own(setting, count_passes):
    run_dir, source, anatomy = setting("llama", "causal-lm")
    worker = make_worker(run_dir, source, anatomy)
    unit = make_unit(anatomy, UPPER["top"], steps=1)
    base = worker._bases.get(unit.plan.base)
    adapted = base.resident.attach(unit.plan, task="causal-lm", head={})
    counted = count_passes(worker, unit)
    batch = {name: tensor for name, tensor in batch_of("causal-lm").items() if name != "labels"}
    other_token, other_mask = ({n: t.clone() for n, t in batch.items()} for _ in range(2))
    other_token["input_ids"][3, 11] += 1
    other_mask["attention_mask"][3, 11] = 0
    fewer = {n: t[:3] for n, t in batch.items()}

    def passes(batch, weights="the same", **modes):
        before = len(counted)
        with base.frozen.reused(adapted, worker._states, base=weights), torch.set_grad_enabled(False):
            adapted.train(modes.get("training", True))
            adapted(**batch)
        return len(counted) - before

    assert passes(batch) == 1
    assert passes(batch) == 0
    assert [passes(changed) for changed in (other_token, other_mask, fewer)] == [1, 1, 1]
    assert passes(batch, weights="of other bits") == 1
    assert passes(batch, training=False) == 1
    assert passes(batch) == 0


def test_what_a_changed_base_gave_is_forgotten(setting, monkeypatch):
    run_dir, source, anatomy = setting("llama", "causal-lm")
    worker, unit = make_worker(run_dir, source, anatomy), make_unit(anatomy, UPPER["top"])
    original = worker_module.evaluate

    def evaluate(model, *args, **kwargs):
        with torch.no_grad():
            worker._bases.get(BaseFormat(32)).resident.model.model.layers[0].mlp.up_proj.weight[5] += 1e-3
        return original(model, *args, **kwargs)

    good = told(worker.run(unit))
    assert worker._states.held_bytes > 0
    with monkeypatch.context() as patch:
        patch.setattr(worker_module, "evaluate", evaluate)
        with pytest.raises(Exception, match="changed the frozen base"):
            worker.run(unit)
    assert worker._states.held_bytes == 0
    assert told(worker.run(unit)) == good


def test_after_a_failure_the_layers_are_what_they_were(setting, monkeypatch):
    run_dir, source, anatomy = setting("llama", "causal-lm")
    worker, unit = make_worker(run_dir, source, anatomy), make_unit(anatomy, UPPER["top"])
    monkeypatch.setattr(worker_module, "evaluate", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        worker.run(unit)
    model = worker._bases.get(BaseFormat(32)).resident.model
    assert not any("forward" in vars(module) or module._forward_pre_hooks for module in model.modules())


def test_kept_states_stay_within_their_bound():
    states, state = States(limit_bytes=1000), torch.zeros(100, dtype=torch.uint8)
    for trial in range(4):
        states.begin()
        for key in range(6):
            states.put(("base", "mode", trial), key, state)
        assert states.held_bytes <= 1000
    # The last trial's are there, and of the others whole groups went, the oldest first.
    assert all(states.get(("base", "mode", 3), key) is not None for key in range(6))
    assert states.get(("base", "mode", 0), 0) is None
    states.begin()
    for key in range(20):
        states.put(("base", "mode", "large"), key, state)
    assert [states.get(("base", "mode", "large"), key) is not None for key in range(20)] == [True] * 10 + [False] * 10
    assert states.held_bytes == 1000
    states.drop("other")
    assert states.held_bytes == 1000
    states.drop("base")
    assert states.held_bytes == 0


def test_states_make_room_when_memory_runs_out(setting, monkeypatch):
    run_dir, source, anatomy = setting("llama", "causal-lm")
    worker, unit = make_worker(run_dir, source, anatomy), make_unit(anatomy, UPPER["top"])
    good = told(worker.run(unit))
    original = worker_module.train

    def train(*args, **kwargs):
        if worker._states.held_bytes:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(*args, **kwargs)

    monkeypatch.setattr(worker_module, "train", train)
    assert told(worker.run(unit)) == good


def test_without_room_no_pass_is_looked_at(setting, monkeypatch):
    states = States(limit_bytes=0)
    states.put(("base", "mode", 1), "key", torch.zeros(1))
    assert states.get(("base", "mode", 1), "key") is None
    run_dir, source, anatomy = setting("llama", "causal-lm")
    monkeypatch.setattr(FrozenLayers, "_look_up", lambda *args: pytest.fail("a pass was hashed"))
    make_worker(run_dir, source, anatomy, reuse=False).run(make_unit(anatomy, UPPER["top"]))


def test_what_cannot_fit_is_not_copied_and_drives_nothing_out(monkeypatch):
    states = States(limit_bytes=1000)
    states.put(("base", "mode", 1), "key", torch.zeros(600, dtype=torch.uint8))
    states.begin()
    states.put(("base", "mode", 2), "key", torch.zeros(300, dtype=torch.uint8))
    monkeypatch.setattr(torch.Tensor, "to", lambda *args, **kwargs: pytest.fail("copied"))
    states.put(("base", "mode", 2), "other", torch.zeros(800, dtype=torch.uint8))
    assert states.held_bytes == 900
    assert states.get(("base", "mode", 1), "key") is not None
