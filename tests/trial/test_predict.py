"""The memory predictor against independent oracles: real steps on CPU, real quantised layers, sums by hand."""

from __future__ import annotations

import copy
import gc
import threading

import bitsandbytes as bnb
import pytest
import torch
import torch.nn.functional as F
import transformers
from families import CONFIGS, LABELS, batch_of
from peft import IA3Config, LoraConfig, PeftConfig, PrefixTuningConfig, VeraConfig, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autopeft.candidates import BaseFormat, Recipe
from autopeft.recipe import OPTIMIZERS
from autopeft.trial.memory import StorageTracker, held_by
from autopeft.trial.model import AUTO_CLASSES, tensors_of
from autopeft.trial.prediction import TrainingSetup, trace_peak
from autopeft.trial.prediction.fakes import no_storage
from autopeft.trial.prediction.kernels import DeviceKernels
from autopeft.trial.prediction.optimizers import traced_optimizer
from autopeft.trial.prediction.quantized import fake_weights, weight_bytes
from autopeft.trial.prediction.steps import held_bytes, state_of
from autopeft.trial.train import make_optimizer

ROWS, LENGTH = 4, 12
HALF, FULL = BaseFormat(16), BaseFormat(32)
TARGETS = {"llama": ["q_proj", "down_proj"], "bert": ["query"], "gpt2": ["c_attn"], "t5": ["q", "wo"]}
HEADS = {"llama": ["score"], "bert": ["classifier"], "gpt2": ["score"], "t5": ["classification_head"]}
ADAPTERS = {
    "lora": lambda targets: LoraConfig(r=4, target_modules=targets),
    "dora": lambda targets: LoraConfig(r=4, use_dora=True, target_modules=targets),
    "dropout": lambda targets: LoraConfig(r=4, lora_dropout=0.1, target_modules=targets),
    "ia3": lambda targets: IA3Config(target_modules=targets, feedforward_modules=[]),
}
CASES = [("llama", "causal-lm"), ("gpt2", "causal-lm"), ("bert", "text-classification"), ("t5", "text-classification")]


def config_of(family: str) -> transformers.PretrainedConfig:
    config = CONFIGS[family]()
    config.num_labels = len(LABELS)
    return config


def adapter_of(name: str, family: str, task: str) -> PeftConfig:
    adapter = ADAPTERS[name](TARGETS[family])
    if task == "text-classification":
        adapter.modules_to_save = HEADS[family]
    return adapter


def real_peak(family: str, task: str, adapter: PeftConfig, *, half: bool, checkpointing: bool = False) -> int:
    """Count the storages of a second, real training step, as training does."""
    dtype = torch.bfloat16 if half else torch.float32
    model = AUTO_CLASSES[task].from_config(config_of(family), dtype=dtype).requires_grad_(False)
    model.config.use_cache = False
    adapted = get_peft_model(model, adapter)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.disable_input_require_grads()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0, fused=True)
    adapted.train()
    batch = batch_of(task, rows=ROWS, length=LENGTH)
    batch["attention_mask"][0, :2] = 0  # else no mask would be made

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = adapted(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    with StorageTracker([*tensors_of(adapted).values(), *held_by(optimizer), *batch.values()]) as tracker:
        step()
    return tracker.peak_bytes


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize(("family", "task"), CASES)
def test_trace_equals_a_real_step_on_cpu_to_the_byte(family: str, task: str, name: str, half: bool) -> None:
    adapter = adapter_of(name, family, task)
    setup = TrainingSetup(ROWS, LENGTH, base=HALF if half else FULL, device="cpu")
    traced = trace_peak(config_of(family), copy.deepcopy(adapter), setup, task=task)
    assert traced.peak_bytes == real_peak(family, task, adapter, half=half)


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_trace_equals_a_real_step_with_gradient_checkpointing(half: bool) -> None:
    adapter = adapter_of("lora", "llama", "causal-lm")
    setup = TrainingSetup(ROWS, LENGTH, base=HALF if half else FULL, device="cpu", gradient_checkpointing=True)
    traced = trace_peak(config_of("llama"), copy.deepcopy(adapter), setup)
    assert traced.peak_bytes == real_peak("llama", "causal-lm", adapter, half=half, checkpointing=True)


def test_static_bytes_are_those_counted_by_hand() -> None:
    config = config_of("llama")  # 3 layers, width 64, 2 of 4 heads for keys, feed-forward 112, 128 words
    layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 112 + 2 * 64
    base = 2 * 128 * 64 + 3 * layer + 64
    rotary = 2 * 8  # the frequencies, and a copy of them; in fp32 whatever the weights are
    adapter = 3 * (4 * (64 + 64) + 4 * (112 + 64))
    trace = trace_peak(config, adapter_of("lora", "llama", "causal-lm"), TrainingSetup(2, 8, device="cpu"))
    assert trace.base_bytes == 2 * base + 4 * rotary
    assert trace.adapter_bytes == 4 * adapter
    assert trace.state_bytes == 8 * adapter + 4 * 12  # two moments, and a step count for each of 12 tensors
    assert trace.trained_params == adapter
    assert trace.step.gradients == 4 * adapter


def test_cuda_rounds_every_storage_to_512_bytes() -> None:
    trace = trace_peak(config_of("llama"), adapter_of("ia3", "llama", "causal-lm"), TrainingSetup(2, 8))
    assert trace.adapter_bytes == 6 * 512
    assert trace.base_bytes % 512 == trace.peak_bytes % 512 == 0


@pytest.mark.parametrize("frozen", [True, False])
def test_a_trace_leaves_what_a_worker_froze_and_freezes_nothing(frozen: bool) -> None:
    gc.unfreeze()
    if frozen:
        gc.freeze()
    trace_peak(config_of("llama"), adapter_of("ia3", "llama", "causal-lm"), TrainingSetup(2, 8))
    assert bool(gc.get_freeze_count()) == frozen
    gc.unfreeze()


def test_peak_is_linear_in_the_rank() -> None:
    def peak(rank: int) -> int:
        adapter = LoraConfig(r=rank, target_modules=["q_proj", "down_proj"])
        return trace_peak(config_of("llama"), adapter, TrainingSetup(ROWS, LENGTH, device="cpu")).peak_bytes

    first, second, third = peak(4), peak(8), peak(16)
    assert third - second == 2 * (second - first) > 0


def test_layers_below_the_lowest_adapter_save_nothing() -> None:
    adapter = LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1])
    layers = trace_peak(config_of("llama"), adapter, TrainingSetup(ROWS, LENGTH)).step.layers
    assert not layers[0].backward
    assert layers[2].saved > layers[1].saved > layers[0].saved
    assert layers[0].kept == layers[2].kept < layers[1].kept


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_quantised_layer_holds_the_bytes_of_a_real_one(kind: str, double_quant: bool) -> None:
    fan_in, fan_out = 192, 320

    def layer() -> nn.Module:
        if kind == "int8":
            return bnb.nn.Linear8bitLt(fan_in, fan_out, bias=True, has_fp16_weights=False)
        return bnb.nn.Linear4bit(
            fan_in, fan_out, compute_dtype=torch.float32, quant_type=kind, compress_statistics=double_quant
        )

    real = layer()
    real.weight.data.normal_()
    real = real.to("cpu")
    if kind == "int8":
        real(torch.zeros(1, fan_in))
    with torch.device("meta"):
        shaped = layer()
    with no_storage():
        assert fake_weights(shaped, {})
        assert _bytes(shaped) == _bytes(real)
    bits = 8 if kind == "int8" else 4
    tables = {"int8": 0, "nf4": 64, "fp4": 64}[kind] + (1024 if bits == 4 and double_quant else 0)
    bias = 4 * fan_out
    assert sum(_bytes(real).values()) == weight_bytes(fan_in, fan_out, bits=bits, double_quant=double_quant) + (
        tables + bias
    )


def _bytes(module: nn.Module) -> dict[str, int]:
    """Bytes by name; int8 has its weight twice by name, once in memory."""
    found, seen = {}, set()
    for name, tensor in tensors_of(nn.ModuleDict({"layer": module})).items():
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            found[name.rpartition(".")[2] if "state2" not in name else name] = storage.nbytes()
            seen.add(storage._cdata)
    return found


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base_is_smaller_and_trains_what_is_trained(bits: int) -> None:
    adapter = adapter_of("dora", "llama", "causal-lm")
    full, small = (
        trace_peak(config_of("llama"), copy.deepcopy(adapter), TrainingSetup(ROWS, LENGTH, base=base, device="cpu"))
        for base in (HALF, BaseFormat(bits, compute_dtype="bfloat16"))
    )
    linears = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 112), (64, 112), (112, 64)] * 3
    saved = sum(2 * i * o - weight_bytes(i, o, bits=bits) for i, o in linears) - (16 + 256) * 4 * (bits == 4)
    assert full.base_bytes - small.base_bytes == saved
    assert small.trained_params == full.trained_params


def test_methods_that_need_numbers_are_traced() -> None:
    from peft import C3AConfig, LoHaConfig, LoKrConfig, ShiraConfig, VBLoRAConfig

    targets = {"target_modules": ["q_proj", "v_proj"]}
    adapters = [
        LoHaConfig(r=4, **targets),
        LoKrConfig(r=4, **targets),
        VBLoRAConfig(r=4, num_vectors=8, vector_length=16, **targets),
        ShiraConfig(r=4, random_seed=1, **targets),
        C3AConfig(block_size=16, **targets),
        VeraConfig(r=4, **targets),
    ]
    for adapter in adapters:
        real = get_peft_model(transformers.AutoModelForCausalLM.from_config(config_of("llama")), copy.deepcopy(adapter))
        trained = sum(p.numel() for p in real.parameters() if p.requires_grad)
        trace = trace_peak(config_of("llama"), adapter, TrainingSetup(2, 8, base=FULL, device="cpu"))
        assert trace.trained_params == trained, adapter.peft_type
        assert trace.step.gradients == 4 * trained, adapter.peft_type


def test_a_prefix_lengthens_keys_and_values() -> None:
    def peak(tokens: int) -> int:
        adapter = PrefixTuningConfig(num_virtual_tokens=tokens, task_type="CAUSAL_LM")
        return trace_peak(config_of("llama"), adapter, TrainingSetup(ROWS, LENGTH)).peak_bytes

    assert peak(1) < peak(16) < peak(64)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_keeps_what_a_real_step_keeps(name: str) -> None:
    """Of each a matrix, a large matrix and a vector, small and large: 8-bit moments begin at 4,096 scalars."""
    shapes = [(8, 16), (64, 65), (300, 300), (100,), (5000,)]

    def kept(optimizer: torch.optim.Optimizer, trained: list[nn.Parameter]) -> int:
        for parameter in trained:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        return held_bytes(state_of(optimizer, trained), 1)

    real = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    with no_storage():
        fake = [nn.Parameter(torch.empty(shape)) for shape in shapes]
        traced = kept(traced_optimizer(name, fake), fake)
    assert traced == kept(make_optimizer(Recipe(1e-3, optimizer=name), real), real) > 0


def test_optimisers_keep_what_they_say() -> None:
    kept = {
        name: trace_peak(config_of("llama"), None, TrainingSetup(2, 8, base=FULL, optimizer=name, device="cpu"))
        for name in ("adamw", "adamw_8bit", "adafactor", "sgd")
    }
    params = kept["sgd"].trained_params
    assert kept["sgd"].state_bytes == 0
    assert kept["adamw"].state_bytes == pytest.approx(8 * params, rel=0.01)
    large = 2 * 8192 + 3 * (2 * 4096 + 3 * 7168)  # the embedding, the head, and all but keys and values
    assert kept["adamw_8bit"].state_bytes == 2 * large * 260 // 256 + 8 * (params - large) + 2 * 1024
    assert kept["adafactor"].state_bytes < params


def test_autocast_follows_the_lists_of_cuda() -> None:
    with FakeTensorMode(), DeviceKernels("cuda", autocast_dtype=torch.bfloat16) as kernels:
        x = torch.empty(2, 3, 8)
        weight = nn.Parameter(torch.empty(8, 8))
        half = x.bfloat16()
        assert F.linear(x, weight).dtype == torch.float32
        with kernels.autocasting():
            assert torch.is_autocast_enabled()
            assert F.linear(x, weight).dtype == (x @ weight).dtype == torch.bfloat16
            assert F.layer_norm(half, (8,)).dtype == half.pow(2).dtype == torch.float32
            assert F.softmax(half, -1).dtype == torch.float32
            assert F.softmax(x, -1, dtype=torch.bfloat16).dtype == torch.bfloat16
            assert F.gelu(half).dtype == torch.bfloat16
        assert not torch.is_autocast_enabled()


def test_cuda_kernels_keep_less_than_plain_products() -> None:
    """The fused kernel keeps no scores: ``(batch, heads, length, length)`` is not among what is saved."""

    def saved(kernels: DeviceKernels | None) -> int:
        with FakeTensorMode():
            query = torch.empty(2, 4, 64, 16, requires_grad=True)
            shapes = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(t.shape) or t, lambda t: t):
                if kernels is None:
                    F.scaled_dot_product_attention(query, query, query, dropout_p=0.1)
                else:
                    with kernels:
                        F.scaled_dot_product_attention(query, query, query, dropout_p=0.1)
            return sum(shape == (2, 4, 64, 64) for shape in shapes)

    assert saved(DeviceKernels("cuda")) == 0 < saved(None)


def test_nothing_is_left_behind_and_other_threads_see_nothing() -> None:
    from peft.tuners.adamss import layer as adamss
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def state() -> tuple[object, ...]:
        return (
            nn.Module._apply,
            adamss.clustering_Z,
            adamss.seg_locations,
            F.dropout,
            F.scaled_dot_product_attention,
            sorted(ALL_ATTENTION_FUNCTIONS.keys()),
            torch.is_autocast_enabled("cuda"),
            torch.is_autocast_enabled("cpu"),
            bnb.nn.Linear4bit.forward,
        )

    before = state()
    seen: list[object] = []

    def elsewhere() -> None:
        layer = nn.Linear(3, 3).to(torch.float64)
        seen.extend([type(layer.weight.data), layer.weight.dtype, F.dropout(torch.ones(8), 0.5).dtype])

    with no_storage(), DeviceKernels("cuda", autocast_dtype=torch.bfloat16) as kernels, kernels.autocasting():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    trace_peak(config_of("llama"), adapter_of("dora", "llama", "causal-lm"), TrainingSetup(2, 8, base=BaseFormat(4)))
    with pytest.raises(ValueError, match="not found in the base model"):
        trace_peak(config_of("llama"), LoraConfig(target_modules=["nothing"]), TrainingSetup(2, 8))
    assert seen == [torch.Tensor, torch.float64, torch.float32]
    assert state() == before
    assert type(torch.ones(1)) is torch.Tensor
