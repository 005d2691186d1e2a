"""A worker on a resident base: the same again and again, elsewhere too, and after whatever went wrong."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from small_run import make_run_dir, make_settings, make_unit, make_worker

from autopeft.candidates import BaseFormat, Candidate
from autopeft.errors import DamagedRunError, OutOfMemoryTrialError, SourceError, TrialError
from autopeft.execute.protocol import run_isolated
from autopeft.methods import METHODS
from autopeft.plans import unfit
from autopeft.trial import worker as worker_module
from autopeft.trial.evaluate import evaluate
from autopeft.trial.model import checksum, tensors_of

TASKS = {"bert": "text-classification", "llama": "causal-lm", "t5": "seq2seq-lm"}
METHOD_VALUES = {name: {"method": name} for name in METHODS}
METHOD_VALUES["lora"] = {"method": "lora", "lora.rank": 4, "lora.dropout": 0.1}
METHOD_VALUES["shira"] = {"method": "shira", "shira.rank": 2}
POSSIBLE = [(family, name) for family, task in TASKS.items() for name in METHODS if task in METHODS[name].tasks]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return make_settings(tmp_path_factory.mktemp, TASKS)


def all_values(anatomy, bits=32):
    """Give the values of every method that can be trained on a base."""
    found = [{**values, "bits": bits} for values in METHOD_VALUES.values()]
    return [values for values in found if not unfit(Candidate(values), anatomy)]


@pytest.fixture(scope="module")
def workers(setting):
    return {family: make_worker(*setting[family]) for family in TASKS}


def told(measurement):
    """Everything of a measurement but the times."""
    return replace(measurement, train_seconds=0.0, eval_seconds=0.0)


@pytest.mark.parametrize(
    ("family", "method", "bits"),
    # With fewer bits on one architecture: others train and are saved in test_bits and test_export.
    [(family, name, 32) for family, name in POSSIBLE]
    + [
        ("bert" if TASKS["bert"] in method.tasks else "llama", name, bits)
        for name, method in METHODS.items()
        for bits in (16, 4)
    ],
)
def test_the_same_unit_gives_the_same_again_and_in_a_fresh_worker(family, method, bits, setting, workers):
    unit = make_unit(setting[family][2], {**METHOD_VALUES[method], "bits": bits}, steps=3)
    if reason := unfit(unit.candidate, setting[family][2]):
        pytest.skip(reason)
    one, other = workers[family].run(unit), workers[family].run(unit)
    assert told(one) == told(other)
    assert told(make_worker(*setting[family]).run(unit)) == told(one)
    assert one.memory_bytes > 0
    assert one.steps == 3
    assert len(one.curve) == 3


@pytest.mark.parametrize("family", TASKS)
def test_the_order_of_units_does_not_matter(family, setting, workers):
    anatomy = setting[family][2]
    units = [make_unit(anatomy, values, steps=2) for values in all_values(anatomy)]
    forth = [told(workers[family].run(unit)) for unit in units]
    back = [told(workers[family].run(unit)) for unit in reversed(units)]
    assert forth == back[::-1]


@pytest.mark.parametrize("family", TASKS)
def test_another_seed_is_another_training_on_the_same_rows(family, setting, workers):
    anatomy = setting[family][2]
    one, other = (workers[family].run(make_unit(anatomy, METHOD_VALUES["lora"], seed=seed)) for seed in (0, 1))
    assert one.metrics != other.metrics
    assert one.base_checksum == other.base_checksum


@pytest.mark.parametrize("family", TASKS)
def test_training_learns(family, setting, workers):
    unit = make_unit(setting[family][2], {"method": "lora", "lora.rank": 8, "lr_multiple": 20.0}, steps=40)
    curve = [loss for _, loss in workers[family].run(unit).curve]
    assert sum(curve[-5:]) < 0.9 * sum(curve[:5])


def test_a_unit_of_no_steps_is_judged_as_it_begins(setting, workers):
    worker, anatomy = workers["llama"], setting["llama"][2]
    measurement = worker.run(make_unit(anatomy, METHOD_VALUES["lora"], steps=0))
    base = worker._bases.get(BaseFormat(32)).resident.model
    assert measurement.metrics == evaluate(base, worker._data, "validation")  # LoRA's product begins at zero
    assert (measurement.steps, measurement.curve) == (0, ())
    # What lies there: the base, and the adapter without gradients and moments.
    held = sum({t.untyped_storage().data_ptr(): t.nbytes for t in tensors_of(base).values()}.values())
    assert measurement.memory_bytes == held + 4 * measurement.trainable_params


def test_a_unit_is_judged_on_its_split(setting, workers):
    anatomy = setting["llama"][2]
    validation, test = (
        workers["llama"].run(make_unit(anatomy, METHOD_VALUES["ia3"], splits=(split,)))
        for split in ("validation", "test")
    )
    assert validation.curve == test.curve
    assert validation.metrics != test.metrics


def test_a_measurement_counts_what_was_trained(setting, workers):
    for family in TASKS:
        anatomy = setting[family][2]
        unit = make_unit(anatomy, METHOD_VALUES["lora"])
        measurement = workers[family].run(unit)
        assert measurement.trainable_params == unit.plan.adapter_params + anatomy.head_params
        assert measurement.head_params == anatomy.head_params
        assert measurement.memory_kind == "tensor_storage"


def test_a_rate_that_diverges_is_a_failure_with_its_step(setting, workers):
    values = {"method": "lora", "lora.rank": 8, "lora.alpha": "32", "lr_multiple": 1e30}
    unit = make_unit(setting["llama"][2], values, steps=20)
    with pytest.raises(TrialError, match=r"the loss is nan at step \d+; the learning rate 5.00e\+26 diverges"):
        workers["llama"].run(unit)
    assert workers["llama"].run(make_unit(setting["llama"][2], METHOD_VALUES["lora"])).steps == 6


def test_a_plan_that_is_not_what_peft_builds_is_a_failure(setting, workers):
    anatomy = setting["bert"][2]
    unit = make_unit(anatomy, METHOD_VALUES["lora"])
    name = next(iter(unit.plan.sizes))
    wrong_count = replace(unit, plan=replace(unit.plan, adapter_params=unit.plan.adapter_params + 1))
    wrong_rank = replace(unit, plan=replace(unit.plan, sizes={**unit.plan.sizes, name: 3}))
    not_there = replace(unit, plan=replace(unit.plan, sizes={**unit.plan.sizes, "no.such.module": 4}))
    # PEFT itself says nothing of a pattern that matches nothing.
    config = {**unit.plan.config, "rank_pattern": {"^no such module$": 2}}
    silent = replace(unit, plan=replace(unit.plan, config=config, sizes={**unit.plan.sizes, name: 2}))
    for broken, why in (
        (wrong_count, "the adapter trains .* planned were"),
        (wrong_rank, f"planned 3, is 4|{name}"),
        (not_there, "no.such.module: planned 4, is None"),
        (silent, "planned 2, is 4"),
    ):
        with pytest.raises(TrialError, match=why):
            workers["bert"].run(broken)
    assert workers["bert"].run(unit).trainable_params == unit.plan.adapter_params + anatomy.head_params


@pytest.mark.parametrize("method", METHODS)
def test_a_unit_that_fails_midway_leaves_the_base_clean(method, setting, workers, monkeypatch):
    worker, unit = workers["bert"], make_unit(setting["bert"][2], {**METHOD_VALUES[method], "bits": 32}, steps=2)
    if reason := unfit(unit.candidate, setting["bert"][2]):
        pytest.skip(reason)
    good = told(worker.run(unit))

    def evaluate(*args, **kwargs):
        raise RuntimeError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(worker_module, "evaluate", evaluate)
        with pytest.raises(RuntimeError, match="cut off"):
            worker.run(unit)
    base = worker._bases.get(BaseFormat(32))
    assert checksum(base.resident.model) == base.checksum
    assert told(worker.run(unit)) == good


def test_a_changed_base_is_a_failure_and_is_loaded_anew(setting, monkeypatch):
    worker, unit = make_worker(*setting["bert"]), make_unit(setting["bert"][2], METHOD_VALUES["ia3"])
    good = told(worker.run(unit))
    original = worker_module.evaluate

    def evaluate(model, *args, **kwargs):
        with torch.no_grad():
            worker._bases.get(BaseFormat(32)).resident.model.bert.pooler.dense.bias[5] += 1e-3
        return original(model, *args, **kwargs)

    monkeypatch.setattr(worker_module, "evaluate", evaluate)
    with pytest.raises(TrialError, match="ia3 changed the frozen base model; its result is not to be trusted"):
        worker.run(unit)
    assert BaseFormat(32) not in worker._bases
    monkeypatch.undo()
    assert told(worker.run(unit)) == good


def test_a_base_that_cannot_be_cleaned_is_loaded_anew(setting, monkeypatch):
    worker, unit = make_worker(*setting["bert"]), make_unit(setting["bert"][2], METHOD_VALUES["ia3"])
    good = told(worker.run(unit))
    monkeypatch.setattr(type(worker._bases.get(BaseFormat(32)).resident), "detach", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        worker.run(unit)
    monkeypatch.undo()
    assert BaseFormat(32) not in worker._bases
    assert told(worker.run(unit)) == good


@pytest.mark.parametrize("where", ["load_base", "train"])
def test_out_of_memory_is_no_failure_but_infeasible(where, setting, monkeypatch):
    worker, unit = make_worker(*setting["bert"]), make_unit(setting["bert"][2], METHOD_VALUES["ia3"])

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    with monkeypatch.context() as patch:
        patch.setattr(worker_module, where, full)
        with pytest.raises(OutOfMemoryTrialError, match="out of memory"):
            worker.run(unit)
        assert run_isolated(worker, [unit])[0].state == "infeasible"
    assert run_isolated(worker, [unit])[0].state == "complete"


def test_bases_of_several_bits_do_not_touch_each_other(setting):
    worker, anatomy = make_worker(*setting["llama"]), setting["llama"][2]
    units = {bits: make_unit(anatomy, {**METHOD_VALUES["lora"], "bits": bits}, steps=2) for bits in (32, 16, 8, 4)}
    first = {bits: told(worker.run(unit)) for bits, unit in units.items()}
    assert len({m.base_checksum for m in first.values()}) == 4
    assert {bits: told(worker.run(unit)) for bits, unit in reversed(units.items())} == first
    memory = {bits: m.memory_bytes for bits, m in first.items()}
    assert memory[4] < memory[8] < memory[32]
    assert memory[16] < memory[32]


def test_a_dropped_base_is_freed_without_a_collection(setting):
    worker = make_worker(*setting["bert"])
    worker.run(make_unit(setting["bert"][2], METHOD_VALUES["lora"]))
    model = weakref.ref(worker._bases.get(BaseFormat(32)).resident.model)
    gc.disable()
    try:
        worker._bases.drop(BaseFormat(32))
        assert model() is None
    finally:
        gc.enable()


def test_many_units_leave_no_tensors_behind(setting, workers):
    worker, anatomy = workers["bert"], setting["bert"][2]

    def tensors():
        gc.collect()
        return sum(1 for x in gc.get_objects() if isinstance(x, torch.Tensor))

    counts = []
    for _ in range(4):
        for values in all_values(anatomy):
            worker.run(make_unit(anatomy, values, steps=1))
        counts.append(tensors())
    assert counts[1] == counts[2] == counts[3]


def test_damaged_data_is_a_damaged_run(setting, tmp_path):
    _, source, anatomy = setting["bert"]
    run_dir = make_run_dir(tmp_path / "torn", "text-classification")
    file = run_dir / "data" / "train.parquet"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DamagedRunError, match="cannot be read"):
        make_worker(run_dir, source, anatomy)


def test_a_flipped_byte_in_the_data_is_a_damaged_run(setting, tmp_path):
    _, source, anatomy = setting["bert"]
    run_dir = make_run_dir(tmp_path / "flipped", "text-classification")
    other = make_run_dir(tmp_path / "other", "text-classification", seed=1)
    (run_dir / "data" / "validation.parquet").write_bytes((other / "data" / "validation.parquet").read_bytes())
    with pytest.raises(DamagedRunError, match="holds other tokens than were prepared"):
        make_worker(run_dir, source, anatomy)


@pytest.mark.parametrize("name", ["data.json", "validation.parquet"])
def test_missing_data_is_a_damaged_run(name, setting, tmp_path):
    _, source, anatomy = setting["bert"]
    run_dir = make_run_dir(tmp_path / "run", "text-classification")
    (run_dir / "data" / name).unlink()
    with pytest.raises(DamagedRunError, match="cannot be read"):
        make_worker(run_dir, source, anatomy)


def test_a_run_directory_that_this_node_does_not_see_is_said(setting, tmp_path):
    _, source, anatomy = setting["bert"]
    with pytest.raises(TrialError, match="is not visible here"):
        make_worker(tmp_path, source, anatomy)


def test_a_base_that_is_gone_is_said(setting, tmp_path):
    run_dir, source, anatomy = setting["bert"]
    worker = make_worker(run_dir, replace(source, path=str(tmp_path / "gone")), anatomy)
    with pytest.raises(SourceError, match="gone"):
        worker.run(make_unit(anatomy, METHOD_VALUES["ia3"]))


def test_an_adapter_is_saved_only_where_one_is_asked_for(setting, workers):
    run_dir, _, anatomy = setting["bert"]
    assert workers["bert"].run(make_unit(anatomy, METHOD_VALUES["ia3"])).adapter_bytes == 0
    assert not (run_dir / "adapters").exists()
    measurement = workers["bert"].run(make_unit(anatomy, METHOD_VALUES["ia3"], adapter_dir="adapters/0007"))
    folder = run_dir / "adapters/0007"
    assert {f.name for f in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors", "autopeft.json"}
    assert measurement.adapter_bytes == sum(f.stat().st_size for f in folder.iterdir())
