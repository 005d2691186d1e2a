"""A training in several units is the one that never stopped, bit for bit; the oracle is the uninterrupted unit."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_run import make_settings, make_unit, make_worker

from autopeft.methods import METHODS
from autopeft.plans import unfit
from autopeft.trial import worker as worker_module
from autopeft.trial.checkpoint import path_of
from autopeft.trial.together import groups

TASKS = {"bert": "text-classification", "llama": "causal-lm", "t5": "seq2seq-lm", "gpt2": "text-classification"}
STEPS = (0, 1, 3, 9)
LORA = {"method": "lora", "lora.rank": 4, "lora.dropout": 0.2}
ALL = {name: {"method": name} for name in METHODS} | {"lora": LORA}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return make_settings(tmp_path_factory.mktemp, TASKS)


@pytest.fixture(scope="module")
def worker_of(setting):
    """Give one of two workers of a family."""
    made = {}
    return lambda family, i: made.setdefault((family, i % 2), make_worker(*setting[family]))


def told(measurement):
    """Everything of a measurement but the times."""
    return replace(measurement, train_seconds=0.0, eval_seconds=0.0)


def unit_of(anatomy, values, *, trial=0, steps=STEPS[-1], **recipe):
    unit = make_unit(anatomy, values, trial=trial, seed=trial, steps=steps, adapter_dir=f"adapters/{trial}")
    return replace(unit, plan=replace(unit.plan, recipe=replace(unit.plan.recipe, **recipe)))


def parts_of(unit, steps=STEPS):
    """Cut a unit at steps."""
    return [
        replace(
            unit,
            first=first,
            steps=last,
            horizon=unit.steps,
            state_dir=f"states/{unit.trial}",
            adapter_dir=unit.adapter_dir * (last == unit.steps),
        )
        for first, last in pairwise(steps)
    ]


def saved(worker, unit):
    files = (worker._run_dir / unit.adapter_dir).glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_same_tensors(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def check(worker_of, family, unit):
    """Train a unit whole and in parts, each part on the other worker; compare all that comes of it."""
    whole = worker_of(family, 0).run(unit)
    weights = saved(worker_of(family, 0), unit)
    for i, part in enumerate(parts_of(unit), start=1):
        last = worker_of(family, i).run(part)
        assert not last.restarted
    assert told(last) == told(whole)
    assert last.train_seconds > 0
    assert_same_tensors(saved(worker_of(family, 1), unit), weights)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_exactly(method, setting, worker_of):
    family = "llama" if TASKS["llama"] in METHODS[method].tasks else "bert"
    unit = unit_of(setting[family][2], {**ALL[method], "bits": 32})
    if reason := unfit(unit.candidate, setting[family][2]):
        pytest.skip(reason)
    check(worker_of, family, unit)


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "adalora", "bitfit", "prefix_tuning"])
def test_other_families_go_on_exactly(family, method, setting, worker_of):
    check(worker_of, family, unit_of(setting[family][2], ALL[method]))


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "adafactor", "weight_decay": 0.1},
        {"optimizer": "adamw_8bit"},
        {"lr_scheduler": "cosine", "warmup_ratio": 0.3, "gradient_accumulation_steps": 2},
        {"gradient_checkpointing": True},
    ],
)
def test_every_recipe_goes_on_exactly(recipe, setting, worker_of):
    check(worker_of, "llama", unit_of(setting["llama"][2], {**LORA, "lora.rank": 64}, **recipe))


@pytest.mark.parametrize("init", ["pissa", "eva"])
def test_what_began_with_the_base_or_the_data_goes_on_exactly(init, setting, worker_of):
    check(worker_of, "llama", unit_of(setting["llama"][2], {**LORA, "lora.init": init}))


@pytest.mark.parametrize(("bits", "form"), [(16, {}), (16, {"compute_dtype": "float16"}), (4, {})])
def test_bases_of_few_bits_go_on_exactly(bits, form, setting, worker_of):
    check(worker_of, "llama", unit_of(setting["llama"][2], {**LORA, "bits": bits, **form}))
    check(worker_of, "bert", unit_of(setting["bert"][2], {"method": "ln_tuning", "bits": bits, **form}))


def test_the_state_of_a_training_is_all_that_it_takes(setting, worker_of, monkeypatch):
    """What is left out makes another training: the tests above can fail."""
    anatomy, find = setting["llama"][2], worker_module.checkpoint.find
    for values, left_out in ((LORA, "random/"), ({"method": "adalora"}, "allocation/"), (LORA, "optimizer/")):
        unit = unit_of(anatomy, values)

        def forgetful(unit, *, left_out=left_out, **options):
            if (state := find(unit, **options)) is None:
                return None
            changed = {n: torch.zeros_like(t) if n.startswith(left_out) else t for n, t in state.tensors.items()}
            if left_out == "random/":
                changed["random/0"] = torch.get_rng_state()
            return replace(state, tensors=changed)

        whole = worker_of("llama", 0).run(unit)
        with monkeypatch.context() as patch:
            patch.setattr(worker_module.checkpoint, "find", forgetful)
            *_, last = [worker_of("llama", i).run(part) for i, part in enumerate(parts_of(unit))]
        assert last.curve != whole.curve


@pytest.fixture
def all_together(monkeypatch):
    """Let all that can be trained together be, whether it pays or not."""
    monkeypatch.setattr(groups, "choose_size", lambda bare, trainees, *_, **__: (len(trainees), {len(trainees): 2.0}))
    monkeypatch.setattr(groups, "is_stacked", lambda plan: False)


GROUP = (
    LORA,
    {"method": "lora", "lora.rank": 8, "lora.dora": True, "lora.dropout": 0.1},
    {"method": "lora", "lora.rank[0]": 0, "lora.rank[1-9]": 8},
    {"method": "ia3"},
)


def run_group(worker, units, caplog):
    """Run units together; gives what is told of each, and what it saved."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        found = worker.run_together(units)
    assert not caplog.records
    return [(told(m), saved(worker, unit) if unit.adapter_dir else {}) for m, unit in zip(found, units, strict=True)]


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_group_goes_on_as_a_group_exactly(family, setting, worker_of, all_together, caplog):
    units = [unit_of(setting[family][2], values, trial=i) for i, values in enumerate(GROUP)]
    # Steps in which memory is counted are taken alone: the ones of the parts are among those of the whole.
    whole = run_group(worker_of(family, 0), units, caplog)
    parts = zip(*map(parts_of, units), strict=True)
    for i, part in enumerate(parts, start=1):
        last = run_group(worker_of(family, i), part, caplog)
    for (one, weights), (other, own) in zip(whole, last, strict=True):
        assert replace(one, curve=(), metrics={}, quality=0) == replace(other, curve=(), metrics={}, quality=0)
        assert [loss for _, loss in other.curve] == pytest.approx([loss for _, loss in one.curve], rel=1e-6)
        assert other.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-6)
        for name, tensor in weights.items():
            assert torch.allclose(tensor, own[name], rtol=1e-4, atol=1e-6), name


def test_those_that_go_on_and_those_that_begin_are_not_mixed(setting, worker_of, all_together, caplog, monkeypatch):
    worker = worker_of("llama", 0)
    old, new = ([unit_of(setting["llama"][2], v, trial=i + k) for i, v in enumerate(GROUP[:2])] for k in (0, 10))
    first, second = zip(*(parts_of(unit, (0, 3, 9))[:2] for unit in old), strict=True)
    begin = [parts_of(unit, (0, 3, 9))[0] for unit in new]
    apart = [*run_group(worker, second, caplog)] if [worker.run_together(first)] else []
    apart_new = run_group(worker, begin, caplog)
    sizes = []
    train_group = type(worker)._train_group
    monkeypatch.setattr(
        type(worker),
        "_train_group",
        lambda self, units, base: sizes.append(len(units)) or train_group(self, units, base),
    )
    worker.run_together(first)
    mixed = run_group(worker, [second[0], begin[0], second[1], begin[1]], caplog)
    assert sizes == [2, 2, 2]
    assert [m for m, _ in mixed] == [apart[0][0], apart_new[0][0], apart[1][0], apart_new[1][0]]


def test_one_of_a_group_whose_state_is_lost_begins_anew_alone(setting, worker_of, all_together, caplog):
    worker = worker_of("llama", 0)
    units = [unit_of(setting["llama"][2], values, trial=i) for i, values in enumerate(GROUP[:3])]
    first, second = zip(*(parts_of(unit, (0, 3, 9)) for unit in units), strict=True)
    worker.run_together(first)
    (worker._run_dir / path_of(second[1], 3)).unlink()
    found = worker.run_together(second)
    assert [m.restarted for m in found] == [False, True, False]
    assert told(found[1]) == replace(told(worker.run(units[1])), restarted=True)
    assert "trial 1 begins anew, for its state at step 3 is lost" in caplog.text


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def damage_bit(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def damage_header(path):
    with safe_open(path, framework="pt") as file:
        said = file.metadata()
    save_file(load_file(path), path, metadata={**said, "checkpoint": said["checkpoint"][:-3]})


def damage_loss(path):
    with safe_open(path, framework="pt") as file:
        said = file.metadata()
    fields = json.loads(said["checkpoint"])
    fields["losses"][0] += 1
    save_file(load_file(path), path, metadata={**said, "checkpoint": json.dumps(fields)})


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), damage_cut, damage_bit, damage_header, damage_loss])
def test_a_lost_state_costs_time_and_nothing_else(damage, setting, worker_of, caplog):
    worker, unit = worker_of("llama", 0), unit_of(setting["llama"][2], LORA)
    whole = worker.run(unit)
    first, last = parts_of(unit, (0, 3, 9))
    worker.run(first)
    damage(worker._run_dir / path_of(last, 3))
    again = worker.run(last)
    assert again.restarted
    assert told(replace(again, restarted=False)) == told(whole)
    assert "trial 0 begins anew, for its state at step 3 is lost: 3.safetensors" in caplog.text


def test_a_state_is_of_one_seed_plan_and_horizon(setting, worker_of):
    worker, unit = worker_of("llama", 0), unit_of(setting["llama"][2], LORA)
    first, last = parts_of(unit, (0, 3, 9))
    worker.run(first)
    assert not worker.run(last).restarted
    assert worker.run(replace(last, seed=5)).restarted
    assert worker.run(replace(last, data_seed=5)).restarted
    assert worker.run(replace(last, steps=8, horizon=8)).restarted
    other = unit_of(setting["llama"][2], LORA, lr_scheduler="cosine")
    assert worker.run(parts_of(other, (0, 3, 9))[1]).restarted


def test_no_file_is_left_but_whole_states(setting, worker_of):
    worker, unit = worker_of("bert", 0), unit_of(setting["bert"][2], LORA, trial=77)
    for part in parts_of(unit):
        worker.run(part)
    folder = worker._run_dir / "states/77"
    assert sorted(path.name for path in folder.iterdir()) == ["1.safetensors", "3.safetensors"]
    trained = worker.run(unit).trainable_params
    # What is trained and two moments, in fp32; the generator; names.
    assert (folder / "3.safetensors").stat().st_size < 3 * 4 * trained + 30_000


def test_a_trial_that_diverges_stops_at_once(setting, worker_of):
    unit = unit_of(setting["llama"][2], {**LORA, "lora.alpha": "32", "lr_multiple": 1e30}, steps=30)
    failed = worker_of("llama", 0)._run_alone(parts_of(unit, (0, 15, 30))[0])
    assert "diverges" in str(failed)
    assert str(failed) == str(worker_of("llama", 0)._run_alone(unit))
