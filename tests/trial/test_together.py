"""Candidates trained together come out as those trained alone; the oracle is the worker that runs each by itself."""

from __future__ import annotations

import gc
import logging
import re
from dataclasses import fields, replace

import pytest
import torch
from architectures import ARCHITECTURES
from families import AUTO_CLASSES, CONFIGS, LABELS, TOKENS
from safetensors.torch import load_file
from small_run import make_run_dir, make_settings, make_unit, make_worker

from autopeft.candidates import BaseFormat, Candidate, Recipe
from autopeft.errors import OutOfMemoryTrialError, TrialError
from autopeft.methods import METHODS
from autopeft.plans import unfit
from autopeft.trial.batches import train_parts
from autopeft.trial.model import ModelSource
from autopeft.trial.reading import read_anatomy
from autopeft.trial.together import choice, groups
from autopeft.trial.together.choice import choose_size
from autopeft.trial.together.lifted import Bare
from autopeft.trial.together.train import backward, group_of, why_alone

TASKS = {"bert": "text-classification", "llama": "causal-lm", "t5": "seq2seq-lm"}
MIXED = (
    {"method": "lora", "lora.rank": 4, "lora.dropout": 0.2},
    {"method": "lora", "lora.rank[0]": 0, "lora.rank[1-9]": 8, "lora.alpha": "16", "lora.rslora": True},
    {"method": "lora", "lora.rank": 2, "lora.share[query]": 4, "lora.share[value]": 1, "lr_multiple": 5.0},
    {"method": "lora", "lora.rank": 8, "lora.dora": True, "lora.dropout": 0.1},
    {"method": "ia3"},
    {"method": "bitfit"},
    {"method": "ln_tuning"},
    {"method": "serial_adapter"},
    {"method": "parallel_adapter"},
)
RECIPES = (
    {},
    {"optimizer": "adafactor", "weight_decay": 0.1},
    {"lr_scheduler": "cosine", "warmup_ratio": 0.3},
    {"optimizer": "adamw_8bit"},
)
LOW = {"delora": 0.01, "fourierft": 0.01}
"""At their customary rates these blow rounding up a thousandfold a step on random weights, alone too."""


NO_GRADIENT = re.compile(r"(key|k_proj|\.k)\.bias$")
"""Softmax takes off what a key's bias adds: its gradient is hardly more than rounding, which an optimiser scales up."""


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return make_settings(tmp_path_factory.mktemp, TASKS)


@pytest.fixture(scope="module")
def workers(setting):
    return {family: make_worker(*setting[family]) for family in TASKS}


@pytest.fixture
def all_together(monkeypatch):
    """Let all that can be trained together be, whether it pays or not."""
    monkeypatch.setattr(groups, "choose_size", lambda bare, trainees, *_, **__: (len(trainees), {len(trainees): 2.0}))
    monkeypatch.setattr(groups, "is_stacked", lambda plan: False)


def unit_of(anatomy, values, i, *, steps, **recipe):
    unit = make_unit(anatomy, values, trial=i, seed=i, steps=steps, adapter_dir=f"adapters/{i}")
    return replace(unit, plan=replace(unit.plan, recipe=replace(unit.plan.recipe, **recipe)))


def outcomes(worker, units, *, together):
    """Give what comes of units, and what was saved of each."""
    found = worker.run_together(units) if together else [worker._run_alone(unit) for unit in units]
    saved = []
    for unit, result in zip(units, found, strict=True):
        folder = worker._run_dir / unit.adapter_dir
        files = [] if isinstance(result, Exception) else list(folder.glob("*.safetensors"))
        saved.append({name: t for file in files for name, t in load_file(file).items()})
    return found, saved


def assert_equal(alone, together, *, tolerance=1e-6):
    for one, other, weights, own in zip(alone[0], together[0], alone[1], together[1], strict=True):
        if isinstance(one, Exception):
            assert (type(one), str(one)) == (type(other), str(other))
            continue
        assert not isinstance(other, Exception), other
        about = [replace(m, train_seconds=0, eval_seconds=0, curve=(), metrics={}, quality=0.0) for m in (one, other)]
        assert about[0] == about[1]  # its memory, too
        assert other.train_seconds > 0
        losses = [torch.tensor([loss for _, loss in m.curve]) for m in (one, other)]
        assert torch.allclose(*losses, rtol=tolerance, atol=0)
        assert other.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=tolerance)
        assert weights.keys() == own.keys()
        names = [name for name in weights if not NO_GRADIENT.search(name)]
        flat = [torch.cat([t[name].flatten() for name in names]) for t in (weights, own)]
        assert (flat[0] - flat[1]).norm() <= tolerance * flat[0].norm()


@pytest.mark.parametrize(("family", "which"), [("llama", (0, 1, 2, 3, 4, 5)), ("bert", (0, 2, 3, 6, 7, 8))])
def test_a_mixed_group_of_many_ends_equals_separate_trainings(family, which, setting, workers, all_together, caplog):
    # BERT has dropout everywhere, inside attention too; candidates end after 50 steps, or earlier.
    units = [
        unit_of(setting[family][2], MIXED[i], i, steps=50 - 20 * (i % 3 == 1), **RECIPES[i % len(RECIPES)])
        for i in which
    ]
    alone = outcomes(workers[family], units, together=False)
    with caplog.at_level(logging.WARNING):
        together = outcomes(workers[family], units, together=True)
    assert not caplog.records
    assert_equal(alone, together)


def test_a_step_alone_before_the_first_together_is_built_upon(setting, workers, all_together):
    # The only step of one is measured, so all take the first alone, before B is turned.
    units = [
        unit_of(setting["llama"][2], {"method": "lora", "lora.rank": 4 + i}, i, steps=steps)
        for i, steps in enumerate((1, 6, 6))
    ]
    alone = outcomes(workers["llama"], units, together=False)
    workers["llama"].run_together(units)  # it is checked once what a group computes, which turns B beforehand
    assert_equal(alone, outcomes(workers["llama"], units, together=True))


def test_accumulated_gradients_of_a_group_equal_separate_ones(setting, workers, all_together):
    units = [unit_of(setting["t5"][2], v, i, steps=3, gradient_accumulation_steps=3) for i, v in enumerate(MIXED)]
    alone = outcomes(workers["t5"], units, together=False)
    assert_equal(alone, outcomes(workers["t5"], units, together=True))


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_group_on_a_base_of_few_bits_equals_separate_trainings(bits, setting, workers, all_together):
    some = [{**MIXED[0], "bits": bits}, {"method": "ia3", "bits": bits}, {**MIXED[1], "bits": bits}]
    units = [unit_of(setting["llama"][2], values, i, steps=4) for i, values in enumerate(some)]
    alone = outcomes(workers["llama"], units, together=False)
    assert_equal(alone, outcomes(workers["llama"], units, together=True), tolerance=3e-3 if bits == 16 else 1e-4)


@pytest.mark.parametrize("family", ["bert"])
def test_every_method_trains_beside_lora_as_it_does_alone(family, setting, workers, all_together, caplog):
    anatomy, worker = setting[family][2], workers[family]
    beside = unit_of(anatomy, {"method": "lora", "lora.rank": 4}, 99, steps=2)
    for i, name in enumerate(METHODS):
        values = {"method": name, "bits": 32, "lr_multiple": LOW.get(name, 0.1)}
        if unfit(Candidate(values), anatomy):
            continue
        unit = unit_of(anatomy, values, i, steps=2)
        if why_alone(unit.plan, device="cpu"):
            continue
        alone = outcomes(worker, [unit], together=False)
        found, saved = outcomes(worker, [beside, unit], together=True)
        assert not caplog.records, f"{name}: {caplog.records[-1].getMessage()}"
        assert_equal(alone, (found[1:], saved[1:]), tolerance=1e-5)


DRAWS, CALLED, DIFFERS = "draws random numbers", "called with something else", "computes something else"
_XLNET, _DEBERTA = (ARCHITECTURES[name].config for name in ("xlnet, no linears in attention", "deberta-v2"))
LAYOUTS = {  # a configuration, what is changed in it, and why it is refused
    "llama": (CONFIGS["llama"](), {"attention_dropout": 0.1}, ""),
    "opt": (ARCHITECTURES["opt"].config, {}, ""),  # with rows of tokens
    # Its rows are places of the text, and those of the batch come second.
    "xlnet": (_XLNET, {}, DRAWS),
    "xlnet, without dropout": (_XLNET, {"dropout": 0.0, "summary_last_dropout": 0.0}, CALLED),
    "xlnet, as many places as rows": (_XLNET, {"dropout": 0.0, "summary_last_dropout": 0.0}, DIFFERS),
    # All rows have one relative position in common, and what is dropped of it.
    "deberta-v2": (_DEBERTA, {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}, DRAWS),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_models_of_all_layouts_are_trained_as_alone(name, tmp_path, all_together, caplog):
    (config, changes, refusal), task = LAYOUTS[name], "causal-lm" if name in ("llama", "opt") else "text-classification"
    torch.manual_seed(7)
    model = AUTO_CLASSES[task].from_config(type(config).from_dict({**config.to_dict(), **changes}))
    (model if task == "causal-lm" else model.base_model).save_pretrained(tmp_path / "model")
    source = ModelSource(str(tmp_path / "model"), task, LABELS if task == "text-classification" else ())
    anatomy = read_anatomy(source).on_data(TOKENS)
    worker = make_worker(make_run_dir(tmp_path, task), source, anatomy)
    cut = {"max_length": 8} if "as many" in name else {}  # two candidates of 4 rows
    units = [unit_of(anatomy, MIXED[i], i, steps=4, **cut) for i in (0, 6)]
    alone = outcomes(worker, units, together=False)
    with caplog.at_level(logging.INFO, "autopeft"):
        together = outcomes(worker, units, together=True)
    assert_equal(alone, together, tolerance=1e-5)
    assert len(caplog.messages) == bool(refusal), caplog.messages
    assert refusal in "".join(caplog.messages)


def test_one_that_diverges_fails_as_alone_and_touches_no_other(setting, workers, all_together):
    wild = {"method": "lora", "lora.rank": 8, "lora.alpha": "32", "lr_multiple": 1e30}
    values = (MIXED[0], wild, MIXED[4], {"method": "ln_tuning", "lr_multiple": 1e30}, MIXED[1])
    units = [unit_of(setting["llama"][2], v, i, steps=10) for i, v in enumerate(values)]
    alone = outcomes(workers["llama"], units, together=False)
    assert sum(isinstance(result, TrialError) for result in alone[0]) == 2
    assert_equal(alone, outcomes(workers["llama"], units, together=True))


def grads(trainees):
    return [[p.grad.clone() for p in trainee.learner.trained] for trainee in trainees]


def make_group(worker, units):
    """Lift the adapters of units off a worker's base; gives the bare base, the candidates and their first batch."""
    base = worker._bases.get(BaseFormat(32))
    bare = Bare(base.resident.model)
    batches = worker._batches.first(2, units[0].plan.recipe, seed=0)
    trainees = [
        worker._groups._lifted(unit, base.resident, bare, batches, lambda unit: worker._attach(unit, base, batches))
        for unit in units
    ]
    return bare, trainees, batches[0]


def test_gradients_of_others_do_not_see_a_candidate_that_is_no_number(setting, workers):
    units = [unit_of(setting["llama"][2], values, i, steps=2) for i, values in enumerate(MIXED)]
    bare, trainees, parts = make_group(workers["llama"], units)
    seen = []
    for broken in (False, True):
        for i, trainee in enumerate(trainees):
            trainee.stream = type(trainee.stream)(i, "cpu")
            trainee.learner.optimizer.zero_grad()
        with group_of(bare, trainees, task="causal-lm", device="cpu") as group:
            if broken:
                for i in (1, 7):  # a stacked product, and a layer of its own
                    for parameter in trainees[i].learner.trained:
                        parameter.data.fill_(torch.nan)
            losses = backward(group, trainees, parts)
            seen.append([(loss, own) for loss, own in zip(losses, grads(trainees), strict=True)])
    for i, ((loss, own), (other_loss, other)) in enumerate(zip(*seen, strict=True)):
        if i in (1, 7):
            assert torch.tensor(other_loss).isnan()
        else:
            assert loss == other_loss
            assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))


def test_dropout_of_each_candidate_is_the_one_that_it_draws_alone(setting, workers):
    # The same candidate four times, but for its seed: only what is drawn differs.
    units = [unit_of(setting["bert"][2], MIXED[0], i, steps=2) for i in (0, 0, 1, 2)]
    bare, trainees, parts = make_group(workers["bert"], units)
    for trainee in trainees[1:]:  # also the same beginnings
        for own, first in zip(trainee.learner.trained, trainees[0].learner.trained, strict=True):
            own.data.copy_(first)
    with group_of(bare, trainees, task="text-classification", device="cpu") as group:
        first, second = backward(group, trainees, parts), backward(group, trainees, parts)
    assert first[0] == first[1]
    assert second[0] == second[1]
    assert len({*first[1:], *second[1:]}) == 6
    trainees[2].lifted.put_on(bare.model)
    adapted = trainees[2].learner.adapted.train()
    torch.manual_seed(1)
    assert [adapted(**parts[0]).loss.item() for _ in range(2)] == pytest.approx([first[2], second[2]], rel=1e-6)
    bare.strip()


def test_what_cannot_be_trained_with_others_is_trained_alone(setting, workers, all_together):
    anatomy = setting["llama"][2]
    units = [
        unit_of(anatomy, {"method": "prompt_tuning"}, 0, steps=3),
        unit_of(anatomy, MIXED[0], 1, steps=3),
        unit_of(anatomy, {**MIXED[1], "lora.init": "pissa"}, 2, steps=3),
        unit_of(anatomy, MIXED[1], 3, steps=3, batch_size=2),
        unit_of(anatomy, MIXED[4], 4, steps=3),
        unit_of(anatomy, {"method": "adalora"}, 5, steps=3),
        unit_of(anatomy, MIXED[4], 6, steps=3, gradient_checkpointing=True),
    ]
    alone = outcomes(workers["llama"], units, together=False)
    assert_equal(alone, outcomes(workers["llama"], units, together=True))


@pytest.mark.parametrize(("bits", "device", "alone"), [(8, "cuda", True), (8, "cpu", False), (4, "cuda", False)])
def test_outliers_of_8_bits_on_cuda_are_those_of_all_rows(bits, device, alone, setting):
    unit = unit_of(setting["llama"][2], {**MIXED[0], "bits": bits}, 0, steps=1)
    assert bool(why_alone(unit.plan, device=device)) == alone


def test_a_group_that_fails_is_trained_one_by_one(setting, all_together, caplog, monkeypatch):
    worker = make_worker(*setting["bert"])
    units = [unit_of(setting["bert"][2], values, i, steps=3) for i, values in enumerate(MIXED[:3])]
    broken = replace(units[1], plan=replace(units[1].plan, adapter_params=units[1].plan.adapter_params + 1))
    alone = outcomes(worker, [units[0], broken, units[2]], together=False)
    assert isinstance(alone[0][1], TrialError)
    assert_equal(alone, outcomes(worker, [units[0], broken, units[2]], together=True))
    assert "trained one by one: the adapter trains" in caplog.messages[-1]
    # A base that draws a number for all rows at once.
    model = worker._bases.get(BaseFormat(32)).resident.model
    alone = outcomes(worker, units, together=False)
    original = type(model.bert.pooler).forward
    monkeypatch.setattr(type(model.bert.pooler), "forward", lambda self, x: original(self, x + 0 * torch.rand(())))
    together = outcomes(worker, units, together=True)
    assert "one by one: together: the base draws random numbers for several candidates" in caplog.messages[-1]
    assert [type(result) for result in together[0]] == [type(result) for result in alone[0]]
    # It will again, so it is not tried again.
    told = len(caplog.messages)
    worker.run_together(units)
    assert len(caplog.messages) == told


def test_a_group_that_is_too_large_for_memory_is_halved(setting, all_together, monkeypatch):
    worker = make_worker(*setting["llama"])
    units = [unit_of(setting["llama"][2], MIXED[4], i, steps=2) for i in range(8)]
    sizes, original = [], groups.train_together

    def train_together(bare, trainees, **options):
        sizes.append(len(trainees))
        if len(trainees) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(bare, trainees, **options)

    monkeypatch.setattr(groups, "train_together", train_together)
    assert not any(isinstance(result, OutOfMemoryTrialError) for result in worker.run_together(units))
    assert not any(isinstance(result, Exception) for result in worker.run_together(units))
    assert sizes == [8, 4, 4]


def test_a_worker_is_the_same_after_a_group(setting, workers, all_together):
    unit = unit_of(setting["bert"][2], MIXED[0], 0, steps=4)
    before = outcomes(workers["bert"], [unit], together=False)
    left = []
    for _ in range(3):
        workers["bert"].run_together([unit_of(setting["bert"][2], v, i, steps=2) for i, v in enumerate(MIXED)])
        gc.collect()
        left.append(sum(isinstance(found, torch.Tensor) for found in gc.get_objects()))
    assert left[1] == left[2]
    assert_equal(before, outcomes(workers["bert"], [unit], together=False), tolerance=0)


@pytest.mark.parametrize(
    ("together", "size"),
    [
        ({2: 1.95, 4: 3.9, 8: 8.0}, 1),  # too little gained
        ({2: 1.0, 4: 1.5, 8: 2.0}, 8),
        ({2: 1.0, 4: 1.0, 8: 2.5}, 4),
        ({2: 1.0, 4: 2.5, 8: 1.0}, 2),
        ({2: 2.3}, 1),
    ],
)
def test_as_many_are_trained_together_as_pay(together, size, setting, workers, monkeypatch):
    units = [unit_of(setting["llama"][2], MIXED[4], i, steps=2) for i in range(8)]
    bare, trainees, parts = make_group(workers["llama"], units)
    monkeypatch.setattr(choice, "_seconds_alone", lambda *_: 1.0)
    monkeypatch.setattr(choice, "_seconds_together", lambda bare, some, *_: together[len(some)])
    chosen, gains = choose_size(bare, trainees, parts, task="causal-lm", device="cpu", reusing=None)
    assert chosen == size
    assert gains == {1: 1.0, **{n: n / seconds for n, seconds in together.items() if n in gains}}


def test_memory_that_runs_out_ends_the_trying_at_the_best_that_was_timed(setting, workers, monkeypatch):
    units = [unit_of(setting["llama"][2], MIXED[4], i, steps=2) for i in range(8)]
    bare, trainees, parts = make_group(workers["llama"], units)

    def seconds(bare, some, *_):
        if len(some) == 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0

    monkeypatch.setattr(choice, "_seconds_alone", lambda *_: 1.0)
    monkeypatch.setattr(choice, "_seconds_together", seconds)
    found = choose_size(bare, trainees, parts, task="causal-lm", device="cpu", reusing=None)
    assert found == (4, {1: 1.0, 2: 2.0, 4: 4.0, 8: 0.0})


def test_memory_that_runs_out_before_anything_is_timed_fixes_no_number(setting, monkeypatch):
    worker, tried = make_worker(*setting["llama"]), []

    def choose_size(bare, trainees, *_, **__):
        tried.append(len(trainees))
        if len(trainees) == 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2, {1: 1.0, 2: 2.0, 4: 1.5}

    monkeypatch.setattr(groups, "choose_size", choose_size)
    units = [unit_of(setting["llama"][2], MIXED[4], i, steps=1) for i in range(8)]
    for _ in range(2):
        assert not any(isinstance(result, Exception) for result in worker.run_together(units))
    assert tried == [8, 4]


def test_more_are_tried_when_there_are_more(setting, monkeypatch):
    worker, tried = make_worker(*setting["llama"]), []

    def choose_size(bare, trainees, *_, **__):
        tried.append(len(trainees))
        return (4, {1: 1.0, 2: 2.0, 4: 3.0, 8: 2.5}) if len(trainees) >= 8 else (2, {1: 1.0, 2: 2.0})

    monkeypatch.setattr(groups, "choose_size", choose_size)
    for count in (1, 3, 3, 9, 9):
        units = [unit_of(setting["llama"][2], MIXED[4], i, steps=1) for i in range(count)]
        assert not any(isinstance(result, Exception) for result in worker.run_together(units))
    assert tried == [3, 9]


def test_trying_what_pays_changes_no_result(setting, monkeypatch):
    tried = []

    def all_of(bare, trainees, *arguments, **options):
        tried.append(choose_size(bare, trainees, *arguments, **options)[1])
        return len(trainees), tried[-1]

    monkeypatch.setattr(groups, "choose_size", all_of)
    monkeypatch.setattr(choice, "WORSE", 0.0)
    monkeypatch.setattr(groups, "is_stacked", lambda plan: False)
    units = [unit_of(setting["bert"][2], values, i, steps=5) for i, values in enumerate(MIXED[:4])]
    worker = make_worker(*setting["bert"])
    alone = outcomes(worker, units, together=False)
    assert_equal(alone, outcomes(worker, units, together=True))
    assert [list(gains) for gains in tried] == [[1, 2, 4]]


def test_a_method_is_compared_with_itself_alone_before_its_first_group(setting, all_together, monkeypatch):
    """That IA3 computes the same beside BitFit says nothing of an adapter with dropout."""
    compared, original = [], groups.is_as_alone

    def is_as_alone(bare, trainees, *arguments, **options):
        compared.append(len(trainees))
        return original(bare, trainees, *arguments, **options)

    monkeypatch.setattr(groups, "is_as_alone", is_as_alone)
    worker, number = make_worker(*setting["bert"]), iter(range(100))
    ia3, bitfit, lora, dropout = ({"method": "ia3"}, {"method": "bitfit"}, MIXED[2], MIXED[0])

    def compares(*values):
        before = len(compared)
        units = [unit_of(setting["bert"][2], v, next(number), steps=2) for v in values]
        assert not any(isinstance(result, Exception) for result in worker.run_together(units))
        return len(compared) - before

    assert compares(ia3, bitfit) == 1
    assert compares(bitfit, ia3) == 0
    assert compares(ia3, lora) == 1
    assert compares(ia3, dropout) == 1
    assert compares(lora, dropout) == 0


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe)])
def test_candidates_of_one_kind_have_the_same_data(field, setting, workers):
    worker, unit = workers["llama"], unit_of(setting["llama"][2], MIXED[0], 0, steps=2)
    now = getattr(unit.plan.recipe, field)
    changed = {"optimizer": "adafactor", "lr_scheduler": "cosine", "max_length": 6}
    if field not in changed:
        changed[field] = not now if isinstance(now, bool) else now + 1
    other = replace(unit.plan.recipe, **{field: changed[field]})
    if worker._groups._kind(unit) != worker._groups._kind(replace(unit, plan=replace(unit.plan, recipe=other))):
        return
    first, second = (
        [p for s in (0, 1) for p in train_parts(worker._data, s, recipe=r, seed=0)] for r in (unit.plan.recipe, other)
    )
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
