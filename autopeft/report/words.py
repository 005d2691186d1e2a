"""The words of the report: methods, measures of memory and states, said so that a newcomer understands them."""

from __future__ import annotations

from autopeft.candidates import AdapterPlan
from autopeft.methods import METHODS
from autopeft.records import TrialRecord

_METHODS = {
    "lora": "adds a small trained matrix product beside chosen linear layers; the rank says how wide it is",
    "ia3": "trains one scaling factor for each output of chosen linear layers",
    "ln_tuning": "trains the scale and shift of the model's normalisation layers",
    "prompt_tuning": "trains a few virtual tokens that stand before every input",
    "prefix_tuning": "trains keys and values that every layer reads as if they stood before the text",
    "layer_prefix": "trains keys and values that the attention of chosen layers reads beside those of the text",
    "p_tuning": "trains virtual tokens through a small network",
    "oft": "rotates blocks of each linear layer's inputs by trained orthogonal matrices",
    "boft": "rotates blocks of each weight by trained orthogonal matrices, and scales its outputs",
    "hra": "multiplies each weight by a few trained reflections",
    "fourierft": "adds to each weight the inverse Fourier transform of a few trained coefficients",
    "waveft": "adds to each weight the inverse wavelet transform of a few trained coefficients",
    "c3a": "adds to each weight circulant blocks, of which one row each is trained",
    "road": "rotates and scales the outputs of linear layers in pairs",
    "beft": "adds one trained vector to the outputs of each linear layer",
    "cartridge": "trains a cache of keys and values that every layer reads as if it stood before the text",
    "adaption_prompt": "lets the attention of the top layers read trained tokens, through a gate that starts closed",
    "trainable_tokens": "trains the embeddings of the training data's most frequent tokens",
    "serial_adapter": "sends what a block of the model has computed through a small trained network, and adds that",
    "parallel_adapter": "sends what a block of the model reads through a small trained network, and adds that",
    "bitfit": "trains the biases of the model, and gives one to each linear layer that has none",
    "full": "trains every weight of the model",
    "top_layers": "trains every weight of the model's last layers",
    "serial+parallel+prefix": "has small networks behind and beside the feed-forward, and trained keys and values",
    "parallel+prefix": "has small networks beside the feed-forward, and trained keys and values",
    "lora+bitfit": "adds trained matrix products beside chosen linear layers, and trains the biases",
    "lora+serial": "adds trained matrix products in the attention, and small networks behind the feed-forward",
    "lora+parallel": "adds trained matrix products in the attention, and small networks beside the feed-forward",
    "lora+prompt": "adds trained matrix products beside chosen linear layers, and trained virtual tokens",
    "lora+ia3": "adds trained matrix products in the feed-forward, and scales keys and values in the attention",
    "adalora": "adds a product of three matrices beside chosen linear layers, and moves its rank to where it matters",
    "loha": "adds the elementwise product of two low-rank products beside chosen linear layers",
    "lokr": "adds a Kronecker product of two small matrices beside chosen linear layers",
    "hira": "scales each weight of chosen linear layers by a low-rank product",
    "delora": "adds a low-rank product whose directions and strength are trained apart",
    "vera": "trains two vectors for each linear layer, which scale frozen random matrices that all layers share",
    "pvera": "as VeRA, with one of the vectors drawn at random while training",
    "randlora": "trains the scales of frozen random products that all layers share",
    "gralora": "cuts each weight into blocks and adds a low-rank product beside each",
    "shira": "trains a few random entries of each weight",
    "miss": "adds a small trained block that is repeated along the inputs of chosen linear layers",
    "osf": "trains the smallest singular directions of each weight, and keeps away from the largest",
    "vblora": "puts low-rank products together of trained vectors that all layers share",
    "unilora": "reads all entries of low-rank products from one trained vector",
    "tinylora": "trains a handful of scalars that choose an update within each weight's largest directions",
    "peanut": "trains a small network that reads each weight and writes its update",
    "glora": "scales and shifts each weight and bias by trained products, vectors or constants",
    "deft": "takes a small subspace out of each weight's outputs and trains what stands in it instead",
    "supertuning": "trains the largest entries of each weight",
}

MEMORY_KINDS = {
    "cuda_allocated": (
        "Peak of torch.cuda.max_memory_allocated while training on the GPU: weights, gradients, optimiser state and "
        "activations. The CUDA context and the allocator's reserve come on top."
    ),
    "tensor_storage": (
        "Peak size of the tensors alive in one training step on the CPU: weights, gradients, optimiser state and "
        "activations. It was not measured on a GPU, and a process needs more than its tensors."
    ),
    "": "As the custom runner gave it; autopeft does not know what it measured.",
}

STATES = {
    "complete": "trained and evaluated",
    "paused": "stopped early, for others were better by then",
    "failed": "ended in an error",
    "infeasible": "did not fit the budget or the memory",
    "stopped": "stopped before the end",
    "duplicate": "had been tried before",
}


def method_title(name: str) -> str:
    """Give the name under which people know a method."""
    return METHODS[name].title if name in METHODS else name


def method_sentence(plan: AdapterPlan) -> str:
    """Say in words what an adapter does; "" where nothing is known of its method."""
    words = _METHODS.get(plan.method, "")
    extras = []
    if any(part.get("use_dora") for part in plan.configs):
        extras.append("DoRA trains a magnitude beside each")
    if any(part.get("use_rslora") for part in plan.configs):
        extras.append("scaled by alpha / sqrt(rank)")
    if (init := plan.config.get("init_lora_weights")) is not None and plan.method == "lora":
        extras.append(f"beginning as {init} does")
    if plan.config.get("lora_bias") or plan.config.get("bias") == "lora_only":
        extras.append("with trained biases")
    if plan.bits in (4, 8):
        extras.append(f"on a base quantised to {plan.bits} bits")
    return "; ".join([words, *extras]) if words else "; ".join(extras)


def is_prompt_method(plan: AdapterPlan) -> bool:
    """Tell whether a method is not placed on modules of the model at all."""
    if plan.sizes or plan.method not in METHODS:
        return not plan.sizes
    return not (METHODS[plan.method].reaches_kinds or METHODS[plan.method].reference)


def method_of(record: TrialRecord) -> str:
    """Give the method of a record; "" where it has none."""
    return record.plan.method if record.plan else str(record.candidate.values.get("method", ""))


def bits_of(record: TrialRecord) -> int | None:
    """Give the bits of the frozen base; None where they are unknown."""
    bits = record.plan.bits if record.plan else record.candidate.values.get("bits")
    return bits if isinstance(bits, int) else None
