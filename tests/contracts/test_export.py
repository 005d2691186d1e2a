"""What a search saves is what it measured: plain PEFT loads it on a fresh base and gives the same logits."""

from __future__ import annotations

import json
from functools import cache
from itertools import product

import peft
import pytest
import torch
from configurations import EVERYWHERE, HYBRIDS, OWN
from families import AUTO_CLASSES, LABELS, PAIRS, TOKENS, batch_of
from signs import other_signs
from small_run import make_run_dir, make_unit, make_worker, pretrained

import autopeft
from autopeft.candidates import BaseFormat
from autopeft.errors import SourceError
from autopeft.methods import METHODS
from autopeft.objectives import OBJECTIVES
from autopeft.plans import unfit
from autopeft.records import RunInfo, TrialRecord
from autopeft.report import Context
from autopeft.report.usage import peft_code
from autopeft.trial import worker as worker_module
from autopeft.trial.model import load_base
from autopeft.trial.reading import read_anatomy

CONFIGURATIONS = {
    "lora": {"method": "lora", "lora.rank[0]": 2, "lora.rank[1-9]": 4, "lora.alpha": "16", "lora.rslora": True},
    "dora": {"method": "lora", "lora.rank": 4, "lora.dora": True},
    **{name: {"method": name} for name in METHODS if name != "lora"},
    "shira": {"method": "shira", "shira.rank": 2},
    "bat": {"method": "miss", "miss.rank": 8, "miss.form": "bat"},
    "pissa": {"method": "lora", "lora.rank[0]": 2, "lora.rank[1-9]": 4, "lora.init": "pissa", "lora.rslora": True},
    "olora": {"method": "lora", "lora.rank": 4, "lora.init": "olora", "lora.dropout": 0.1},
    "eva": {"method": "lora", "lora.rank[0]": 2, "lora.rank[1-9]": 4, "lora.init": "eva"},
    "loftq": {"method": "lora", "lora.rank[0]": 2, "lora.rank[1-9]": 4, "lora.init": "loftq", "lora.rslora": True},
    "biases": {"method": "lora", "lora.rank": 4, "lora.bias": "linears"},
    "mini": {"method": "miss", "miss.rank": 8, "miss.form": "mini", "miss.width": 8},
}
TOLERANCE = {"glora": 1e-6}
"""GLoRA multiplies each weight with a vector; the order of that sum depends on where a loaded file lies in memory."""
SIBLINGS = [pair for pair in PAIRS if pair in (("llama", "causal-lm"), ("bert", "text-classification"))]


def product_of(bits):
    """Every pair, configuration and bits; methods that are built alike on fewer pairs, and on fewest at fewer bits, as
    are all at 8, whose linears stand where those of 4 bits do."""
    for pair, name, b in product(PAIRS, CONFIGURATIONS, bits):
        everywhere = name in (*EVERYWHERE, "dora") and (b != 8 or pair in SIBLINGS)
        if everywhere or pair == SIBLINGS[0] or (pair in SIBLINGS and b == 32):
            yield pair, name, b


BY_PEFT = [name for name in CONFIGURATIONS if name not in (*OWN, *HYBRIDS)]


@pytest.fixture(scope="session")
def worker_on(tmp_path_factory):
    """Give a worker on a base without a head: (family, task) -> (worker, source, anatomy, run directory)."""

    @cache
    def worker(family, task):
        source = pretrained(family, task, tmp_path_factory.mktemp("model"))
        anatomy = read_anatomy(source).on_data(TOKENS)
        run_dir = make_run_dir(tmp_path_factory.mktemp("run"), task)
        return make_worker(run_dir, source, anatomy), source, anatomy, run_dir

    return worker


@pytest.fixture(scope="session")
def train_anew(worker_on):
    """Train and save in a worker; gives (logits as they were judged, adapter directory, source, measurement).

    What cannot be trained gives the reason.
    """

    def train(family, task, name, bits, **form):
        worker, source, anatomy, run_dir = worker_on(family, task)
        values = {**CONFIGURATIONS[name], "bits": bits, "lr_multiple": 10.0, **form}
        folder = "-".join(map(str, ("adapters/" + name, bits, *form.values())))
        unit = make_unit(anatomy, values, adapter_dir=folder)
        if reason := unfit(unit.candidate, anatomy):
            return reason
        seen = []
        original = worker_module.evaluate

        def evaluate(model, prepared, *args, **kwargs):
            seen.append(logits_of(model, prepared.task))
            return original(model, prepared, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker_module, "evaluate", evaluate)
            measurement = worker.run(unit)
        return seen[-1], run_dir / folder, source, measurement

    return train


@pytest.fixture(scope="session")
def train(train_anew):
    """Give the same, of a training that is done once for all who ask for it."""
    trained = cache(train_anew)

    def train(*asked, **form):
        found = trained(*asked, **form)
        return pytest.skip(found) if isinstance(found, str) else found

    return train


def logits_of(model, task):
    inputs = {k: v for k, v in batch_of(task).items() if k != "labels" or task == "seq2seq-lm"}
    with torch.no_grad():
        return model.eval()(**inputs).logits


def fresh_base(source, dtype):
    labels = {"num_labels": len(LABELS)} if source.task == "text-classification" else {}
    return AUTO_CLASSES[source.task].from_pretrained(source.path, dtype=dtype, **labels)


@pytest.mark.parametrize(("pair", "name", "bits"), [case for case in product_of((32, 16)) if case[1] in BY_PEFT])
def test_plain_peft_on_a_fresh_base_gives_the_logits_that_were_judged(pair, name, bits, train):
    judged, folder, source, measurement = train(*pair, name, bits)
    torch.manual_seed(999)  # a new head drawn by the user is another one, until the saved one is loaded
    base = fresh_base(source, torch.float32 if bits == 32 else torch.bfloat16)
    untrained = logits_of(base, pair[1])
    loaded = peft.PeftModel.from_pretrained(base, str(folder))
    torch.testing.assert_close(logits_of(loaded, pair[1]), judged, rtol=0, atol=TOLERANCE.get(name, 0))
    assert untrained.shape != judged.shape or not torch.equal(untrained, judged)
    assert measurement.adapter_bytes == sum(f.stat().st_size for f in folder.iterdir())


@pytest.mark.parametrize(("pair", "name", "bits"), list(product_of((32, 8, 4))))
def test_autopeft_load_gives_the_logits_that_were_judged(pair, name, bits, train):
    judged, folder, _, _ = train(*pair, name, bits)
    torch.manual_seed(999)
    loaded = autopeft.load(folder)
    assert not loaded.training
    torch.testing.assert_close(logits_of(loaded, pair[1]), judged, rtol=0, atol=TOLERANCE.get(name, 0))


@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if name not in HYBRIDS])
def test_an_adapter_is_the_same_where_decompositions_have_other_signs(name, train):
    """Another device takes singular vectors and the like with other signs, and an adapter is loaded there too."""
    judged, folder, _, _ = train("llama", "causal-lm", name, 32)
    with other_signs():
        loaded = logits_of(autopeft.load(folder), "causal-lm")
    torch.testing.assert_close(loaded, judged, rtol=0, atol=1e-5)


def test_the_saved_configuration_names_its_base_and_holds_no_weights_of_it(train, worker_on):
    _, folder, source, measurement = train("bert", "text-classification", "lora", 32)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == source.path
    assert config["inference_mode"]
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        saved = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118 - it is no dict
    assert saved == measurement.trainable_params


def test_saving_again_replaces_the_adapter_whole(train_anew):
    _, folder, _, _ = train_anew("bert", "text-classification", "ia3", 32)
    (folder / "left over").write_text("from a training that was cut off")
    train_anew("bert", "text-classification", "ia3", 32)
    assert not (folder / "left over").exists()
    assert not list(folder.parent.glob(".*partial"))


def test_a_folder_without_an_adapter_of_ours_is_refused(tmp_path):
    with pytest.raises(SourceError, match="holds no adapter that autopeft saved"):
        autopeft.load(tmp_path)
    (tmp_path / "autopeft.json").write_text("{")
    with pytest.raises(SourceError, match="holds no adapter that autopeft saved"):
        autopeft.load(tmp_path)


def test_an_adapter_whose_base_is_gone_is_refused(train, tmp_path):
    _, folder, _, _ = train("bert", "text-classification", "ia3", 32)
    about = json.loads((folder / "autopeft.json").read_text())
    about["source"]["path"] = str(tmp_path / "gone")
    (tmp_path / "autopeft.json").write_text(json.dumps(about))
    with pytest.raises(SourceError, match="gone"):
        autopeft.load(tmp_path)


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_a_new_head_is_drawn_from_the_seed_alone(bits, worker_on):
    _, source, anatomy, _ = worker_on("bert", "text-classification")

    def head(seed):
        torch.manual_seed(12345 + seed)  # whatever happened before
        model = load_base(source, BaseFormat(bits), device="cpu", seed=seed)
        return torch.cat([p.float().flatten() for n, p in model.named_parameters() if n.split(".")[0] in anatomy.head])

    assert torch.equal(head(0), head(0))
    assert not torch.equal(head(0), head(1))


@pytest.mark.parametrize(
    "form",
    [
        {"bits": 32},
        {"bits": 16},
        {"bits": 16, "compute_dtype": "float16"},
        {"bits": 8},
        {"bits": 4},
        {"bits": 4, "quant_type": "fp4", "double_quant": False, "compute_dtype": "bfloat16"},
    ],
    ids=lambda form: " ".join(map(str, form.values())),
)
@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", "text-classification"), ("llama", "causal-lm"), ("t5", "seq2seq-lm"), ("bart", "seq2seq-lm")],
)
def test_the_code_in_the_report_gives_the_logits_that_were_judged(family, task, form, train):
    logits, folder, source, measurement = train(family, task, "lora", **form)
    anatomy = read_anatomy(source)
    unit = make_unit(anatomy, {**CONFIGURATIONS["lora"], **form})
    record = TrialRecord(
        0, "complete", unit.candidate, 0, plan=unit.plan, measurement=measurement, values={"quality": 1.0}
    )
    info = RunInfo(
        request={},
        objectives=(),
        space="",
        created_at="",
        versions={},
        hardware={},
        anatomy=anatomy.to_dict(),
        data={"label_names": list(source.label_names)},
        model={"name": source.path},
    )
    code = peft_code(Context(info, [record], [OBJECTIVES["quality"]], {}), unit.plan, str(folder))
    names: dict[str, object] = {}
    exec("\n".join(line for line in code.splitlines() if "AutoTokenizer.from" not in line), names)
    assert torch.equal(logits_of(names["model"], task), logits)
    loaded = logits_of(autopeft.load(folder), task)
    assert torch.equal(loaded, logits)
