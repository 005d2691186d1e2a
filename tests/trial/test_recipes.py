"""What a recipe does to a training, against the same training done otherwise."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import transformers
from families import batch_of
from small_run import make_data, make_settings, make_unit, make_worker

from autopeft.candidates import BaseFormat, Candidate, Recipe
from autopeft.errors import OutOfMemoryTrialError, TrialError
from autopeft.execute.protocol import run_isolated
from autopeft.methods import METHODS
from autopeft.plans import plan_of, unfit
from autopeft.recipe import OPTIMIZERS, conflict_with
from autopeft.trial import bases as bases_module
from autopeft.trial import worker as worker_module
from autopeft.trial.adapters import Resident
from autopeft.trial.batches import cut, rows_left_empty, train_parts
from autopeft.trial.memory import ran_out_of_memory
from autopeft.trial.model import load_base
from autopeft.trial.packing import keeps_texts_apart, pack
from autopeft.trial.train import make_optimizer, shares_of

TASKS = {"bert": "text-classification", "llama": "causal-lm", "gpt2": "causal-lm"}
LORA = {"method": "lora", "lora.rank": 4}
SETTINGS = {
    "lora": {"lora.rank": 4, "lora.dropout": 0.1},
    "shira": {"shira.rank": 2},
    # Of one layer alone there is nothing to save: its activations are needed at once, and all together.
    "top_layers": {"top_layers.top": 3},
}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return make_settings(tmp_path_factory.mktemp, TASKS)


@pytest.fixture(scope="module")
def workers(setting):
    return {family: make_worker(*setting[family]) for family in TASKS}


@pytest.fixture
def run(setting, workers):
    def run(family, values=LORA, *, steps=5, **recipe):
        unit = make_unit(setting[family][2], values, steps=steps)
        told = replace(unit.plan.recipe, **recipe)
        return workers[family].run(replace(unit, plan=replace(unit.plan, recipe=told)))

    return run


@pytest.fixture
def no_dropout(workers):
    """Let bases drop nothing out while they train: what is drawn for it depends on the shape of a batch."""
    found = [
        module
        for worker in workers.values()
        for module in worker._bases.get(BaseFormat(32)).resident.model.modules()
        if isinstance(module, torch.nn.Dropout)
    ]
    kept = [module.p for module in found]
    for module in found:
        module.p = 0.0
    yield
    for module, p in zip(found, kept, strict=True):
        module.p = p


def losses(measurement):
    return [loss for _, loss in measurement.curve]


@pytest.mark.parametrize("family", TASKS)
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_a_step_in_parts_is_the_whole_step(family, parts, run, no_dropout):
    """Rows have answers of different lengths, so parts that counted alike would be another step."""
    whole, cut_up = run(family), run(family, gradient_accumulation_steps=parts)
    assert losses(cut_up) == pytest.approx(losses(whole), rel=1e-5)
    assert cut_up.quality == pytest.approx(whole.quality, rel=1e-5)
    assert cut_up.memory_bytes < whole.memory_bytes


def test_parts_weigh_by_what_is_trained_in_them():
    parts = train_parts(make_data("causal-lm"), 0, recipe=Recipe(1.0, 4, 4), seed=0)
    counts = [int((part["labels"] >= 0).sum()) for part in parts]
    assert len(set(counts)) > 1
    assert shares_of(parts) == [count / sum(counts) for count in counts]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("parts", [1, 2])
def test_packed_texts_give_the_losses_of_unpacked_rows(family, parts, run, no_dropout):
    plain = run(family, batch_size=8)
    packed = run(family, batch_size=8, packing=True, gradient_accumulation_steps=parts)
    assert losses(packed) == pytest.approx(losses(plain), rel=1e-5)
    assert packed.quality == pytest.approx(plain.quality, rel=1e-4)


def test_packing_puts_every_text_whole_into_as_few_rows_as_are_needed():
    texts = [[10 * i + j for j in range(n)] for i, n in enumerate((3, 7, 2, 5, 4, 1), start=1)]
    batch = pack(texts, texts, length=8, pad_id=0)
    assert batch["input_ids"].shape == (3, 8)
    found = []
    for ids, labels, places in zip(*(batch[n].tolist() for n in ("input_ids", "labels", "position_ids")), strict=True):
        starts = [i for i, place in enumerate(places) if place == 0 and ids[i]]
        for start in starts:
            text = next(t for t in texts if t[0] == ids[start])
            end = start + len(text)
            assert ids[start:end] == text
            assert places[start:end] == list(range(len(text)))
            assert labels[start:end] == [-100, *text[1:]]
            found.append(text)
    assert sorted(found) == sorted(texts)
    assert int((batch["labels"] >= 0).sum()) == sum(len(text) - 1 for text in texts)


def test_a_model_that_lets_packed_texts_see_each_other_is_found_out_and_refused(setting, run, workers, monkeypatch):
    base = workers["llama"]._bases.get(BaseFormat(32))
    model = base.resident.model
    assert keeps_texts_apart(model)
    forward = type(model).forward
    with monkeypatch.context() as patch:
        # As a model does that was not told of positions: one text after the other, under a causal mask.
        patch.setattr(type(model), "forward", lambda self, *a, position_ids=None, **k: forward(self, *a, **k))
        assert not keeps_texts_apart(model)
        vars(base).pop("keeps_texts_apart", None)
        with pytest.raises(TrialError, match="packing: this model lets the texts of a row see each other"):
            run("llama", packing=True)
    vars(base).pop("keeps_texts_apart", None)
    assert run("llama", packing=True).steps == 5


@pytest.mark.parametrize("family", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_changes_memory_and_nothing_else(family, method, run, setting):
    values = {"method": method, **SETTINGS.get(method, {})}
    recipe, anatomy = Recipe(1.0, gradient_checkpointing=True), setting[family][2]
    if reason := unfit(Candidate({"bits": 32, **values}), anatomy):
        pytest.skip(reason)
    if conflict_with(recipe, plan_of(Candidate(values), anatomy).configs):
        pytest.skip("refused")
    plain, saving = run(family, values), run(family, values, gradient_checkpointing=True)
    assert losses(saving) == losses(plain)
    assert saving.metrics == plain.metrics
    assert saving.memory_bytes < plain.memory_bytes


def test_checkpointing_is_off_again_afterwards(run):
    plain = run("llama", LORA)
    run("llama", LORA, gradient_checkpointing=True)
    assert run("llama", LORA).memory_bytes == plain.memory_bytes


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_and_repeats_itself(name, run, setting):
    unlike = {"adamw": run("llama", steps=12)}
    one, other = run("llama", optimizer=name, steps=12), run("llama", optimizer=name, steps=12)
    assert losses(one) == losses(other)
    assert losses(one)[-1] < losses(one)[0]
    if name == "adafactor":
        assert losses(one) != losses(unlike["adamw"])
        assert one.memory_bytes < unlike["adamw"].memory_bytes


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("adamw", lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True)),
        (
            "adafactor",
            lambda p: transformers.Adafactor(
                p, lr=0.01, weight_decay=0.1, scale_parameter=False, relative_step=False, warmup_init=False
            ),
        ),
    ],
)
def test_an_optimizer_is_the_one_that_is_named(name, theirs):
    def stepped(make):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(6, 5))
        optimizer = make([weight])
        for _ in range(5):
            (weight.square() * torch.arange(5.0)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return weight.detach()

    assert torch.equal(
        stepped(lambda p: make_optimizer(Recipe(0.01, optimizer=name, weight_decay=0.1), p)), stepped(theirs)
    )


def test_moments_of_8_bits_take_a_quarter_and_step_nearly_alike():
    def stepped(name):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(128, 64))  # bitsandbytes leaves small tensors in fp32
        optimizer = make_optimizer(Recipe(0.01, optimizer=name), [weight])
        for _ in range(10):
            (weight - 1).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        held = sum(
            t.nbytes for n, t in optimizer.state[weight].items() if n in ("exp_avg", "exp_avg_sq", "state1", "state2")
        )
        return weight.detach(), held

    (plain, held), (eight, held_8bit) = stepped("adamw"), stepped("adamw_8bit")
    assert held_8bit * 4 == held
    assert (plain - eight).abs().mean() < 0.05 * 0.1  # a twentieth of the way that ten steps of 0.01 go
    assert torch.equal(stepped("paged_adamw_8bit")[0], eight)  # on a CPU there is nothing to page


def test_weight_decay_and_schedule_reach_the_training(run):
    plain = losses(run("llama"))
    for change in ({"weight_decay": 0.5}, {"lr_scheduler": "cosine"}, {"warmup_ratio": 0.8}, {"batch_size": 2}):
        assert losses(run("llama", **change)) != plain, change


def test_a_shorter_max_length_cuts_what_is_trained_on_and_not_what_is_judged(run):
    plain, short = run("llama"), run("llama", max_length=8)
    assert short.memory_bytes < plain.memory_bytes
    assert losses(short)[0] != losses(plain)[0]
    untrained = run("llama", {**LORA, "lr_multiple": 1e-20}), run("llama", {**LORA, "lr_multiple": 1e-20}, max_length=8)
    assert untrained[0].metrics == untrained[1].metrics
    assert losses(run("llama", max_length=14)) == losses(plain)  # what the data was prepared with


def test_cutting_keeps_what_closes_a_text():
    data = make_data("text-classification")
    assert cut([[7, 8, 9, 1]], 3, closing=0) == [[7, 8, 9]]
    parts = train_parts(replace(data, closing=1), 0, recipe=Recipe(1.0, 8, max_length=8), seed=0)
    assert parts[0]["input_ids"].shape == (8, 8)
    ends = [ids[mask.sum() - 1] for ids, mask in zip(parts[0]["input_ids"], parts[0]["attention_mask"], strict=True)]
    assert set(map(int, ends)) == {1}


def test_rows_whose_prompt_fills_a_length_are_counted():
    data = make_data("causal-lm")
    assert rows_left_empty(data, 8) == []
    assert len(rows_left_empty(data, 2)) == data.train.num_rows  # two tokens of prompt


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_base_computes_in_the_type_asked_for(bits, dtype, run):
    values = {**LORA, "bits": bits, "compute_dtype": dtype, "lr_multiple": 10.0}
    one = run("llama", values, steps=15)
    assert losses(one) == losses(run("llama", values, steps=15))
    assert all(map(math.isfinite, losses(one)))
    assert losses(one)[-1] < losses(one)[0]


def counted_loads(monkeypatch):
    loads = []
    original = worker_module.load_base

    def load(source, base, **options):
        loads.append(base.bits)
        return original(source, base, **options)

    monkeypatch.setattr(worker_module, "load_base", load)
    return loads


def test_the_base_that_was_not_used_for_longest_makes_room(setting, monkeypatch):
    loads = counted_loads(monkeypatch)
    anatomy = setting["llama"][2]
    sizes = {}
    roomy = make_worker(*setting["llama"])
    for bits in (32, 16, 8):
        sizes[bits] = roomy._bases.get(BaseFormat(bits)).held_bytes
    assert sizes[32] > sizes[16] > sizes[8]
    assert sizes[16] * 2 == pytest.approx(sizes[32], rel=0.01)
    loads.clear()
    worker = make_worker(*setting["llama"])
    worker._bases._limit_bytes = sizes[32] + sizes[16]  # two of the three, whichever these are

    def train(bits):
        return worker.run(make_unit(anatomy, {**LORA, "bits": bits}, steps=2)).metrics

    first = {bits: train(bits) for bits in (32, 16)}
    for bits in (32, 16, 32):
        train(bits)
    assert loads == [32, 16]
    first[8] = train(8)  # in the place of 16 bits
    assert loads == [32, 16, 8]
    assert train(32) == first[32]
    assert loads == [32, 16, 8]
    assert train(16) == first[16]
    assert loads == [32, 16, 8, 16]
    worker._bases._limit_bytes = 1  # less than any: one at a time, but that one whole
    for bits in (32, 32, 8, 8, 32):
        assert train(bits) == first[bits]
    assert loads[4:] == [32, 8, 32] or loads[4:] == [8, 32]
    assert worker._bases.held_bytes == sizes[32]


CPU_FULL = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_FULL), MemoryError("no room")]
)
@pytest.mark.parametrize("where", ["worker.load_base", "worker.train", "batches.train_parts", "worker.evaluate"])
def test_memory_that_runs_out_is_infeasible_and_the_next_trial_is_as_in_a_fresh_worker(
    error, where, setting, monkeypatch
):
    worker, unit = make_worker(*setting["bert"]), make_unit(setting["bert"][2], LORA)
    good = run_isolated(make_worker(*setting["bert"]), [unit])[0].measurement

    def full(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(f"autopeft.trial.{where}", full)
        (outcome,) = run_isolated(worker, [unit])
    assert outcome.state == "infeasible"
    assert outcome.reason.startswith("out of memory; peak seen ")
    assert outcome.exhausted_bytes > 2**20
    again = worker.run(unit)
    assert losses(again) == losses(good)
    assert again.base_checksum == good.base_checksum


def test_a_real_allocation_that_fails_is_told_from_other_errors(setting, monkeypatch):
    worker, unit = make_worker(*setting["bert"]), make_unit(setting["bert"][2], LORA)
    original = worker_module.evaluate

    def evaluate(*args, **kwargs):
        torch.empty(2**60)
        return original(*args, **kwargs)

    monkeypatch.setattr(worker_module, "evaluate", evaluate)
    with pytest.raises(OutOfMemoryTrialError):
        worker.run(unit)
    assert not ran_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    wrapped = ValueError("could not be loaded")
    wrapped.__cause__ = MemoryError()
    assert ran_out_of_memory(wrapped)


def test_out_of_memory_beside_other_bases_is_tried_again_without_them(setting, monkeypatch):
    worker, anatomy = make_worker(*setting["bert"]), setting["bert"][2]
    worker.run(make_unit(anatomy, {**LORA, "bits": 16}, steps=1))
    original = worker_module.train
    tries = []

    def train(*args, **kwargs):
        tries.append(BaseFormat(16) in worker._bases)
        if tries[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(*args, **kwargs)

    monkeypatch.setattr(worker_module, "train", train)
    assert worker.run(make_unit(anatomy, LORA)).steps == 6
    assert tries == [True, False]


def test_bases_may_take_half_of_a_workers_share(setting, monkeypatch):
    monkeypatch.setattr(worker_module, "capacity_bytes", lambda device: 1000)
    assert bases_module.ROOM_FOR_BASES == 0.5
    assert make_worker(*setting["bert"], memory_share=0.25)._bases._limit_bytes == 125


def test_checkpointing_is_off_after_detaching(setting):
    _, source, anatomy = setting["bert"]
    resident = Resident(load_base(source, BaseFormat(32), device="cpu"))
    plan = plan_of(Candidate(LORA), anatomy, recipe=Recipe(0.0, gradient_checkpointing=True))
    adapted = resident.attach(plan, task=anatomy.task, head=anatomy.head)
    assert resident.model.is_gradient_checkpointing
    adapted.train()
    adapted(**batch_of(anatomy.task)).loss.backward()
    resident.detach()
    assert not resident.model.is_gradient_checkpointing
    assert not any(m._forward_hooks for m in resident.model.modules())
