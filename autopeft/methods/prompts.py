"""The prompt methods: trained vectors that the model reads as if they stood before the text.

Prompt tuning (Lester et al., arXiv:2104.08691) trains input embeddings; P-tuning (Liu et al., arXiv:2103.10385)
trains them through a small network; prefix tuning (Li and Liang, arXiv:2101.00190) trains the keys
and values of each layer.

In an encoder-decoder a prompt stands before the source only. Unless told otherwise PEFT 0.21 makes a second one, for
the decoder, which its forward pass never reads: half of what it trains would be of no effect. Its prefix for the
decoder is split wrongly: with an even number of layers half of it is never read, and layers share the other half. So
prefix tuning is not for sequence-to-sequence models.
"""

from __future__ import annotations

from typing import Any

from autopeft.anatomy import Anatomy
from autopeft.methods.method import Build, Method, Settings, is_count, number


def tokens_of(settings: Settings) -> int:
    """Read how many virtual tokens there are."""
    return int(number(settings.get("tokens"), 16))


def _config(peft_type: str, tokens: int, **fields: Any) -> dict[str, Any]:
    return {"peft_type": peft_type, "num_virtual_tokens": tokens, **fields}


def _embedding(anatomy: Anatomy) -> dict[str, int]:
    """Say what PEFT would else take from the configuration: the width of a layer, which an embedding need not have.

    It wants layers and heads too, and uses them for a prefix only. One prompt, also where there are two submodules.
    """
    return {
        "token_dim": anatomy.prompt.token_dim,
        "num_layers": max(1, anatomy.n_layers),
        "num_attention_heads": 1,
        "num_transformer_submodules": 1,
    }


def build_prompt(settings: Settings, anatomy: Anatomy) -> Build:
    """Train ``tokens * token_dim`` scalars."""
    tokens, shape = tokens_of(settings), anatomy.prompt
    config = _config("PROMPT_TUNING", tokens, prompt_tuning_init="RANDOM", **_embedding(anatomy))
    return Build({}, tokens * shape.token_dim, config)


def build_prefix(settings: Settings, anatomy: Anatomy) -> Build:
    """Train a key and a value for each token and layer: ``tokens * layers * 2 * prefix_dim`` scalars."""
    tokens, shape = tokens_of(settings), anatomy.prompt
    params = tokens * shape.layers * 2 * shape.prefix_dim
    return Build({}, params, _config("PREFIX_TUNING", tokens, prefix_projection=False))


def build_p_tuning(settings: Settings, anatomy: Anatomy) -> Build:
    """Train embeddings and a three-layer network of `width` that turns them into prompts."""
    tokens, shape = tokens_of(settings), anatomy.prompt
    width = int(number(settings.get("width"), 64))
    network = (shape.token_dim + 1) * width + (width + 1) * width + (width + 1) * shape.token_dim
    config = _config("P_TUNING", tokens, encoder_reparameterization_type="MLP", **_embedding(anatomy))
    config["encoder_hidden_size"] = width
    return Build({}, tokens * shape.token_dim + network, config)


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """PEFT trains a head beside a prompt only where it knows the head's name."""
    unknown = [name for name in anatomy.head if not name.endswith(("classifier", "score"))]
    return f"PEFT does not train the head {unknown[0]!r} beside a prompt" if unknown else ""


def refuses_prefix(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """A prefix must have the shape of the keys and values that attention reads."""
    if reason := refuses(settings, bits, anatomy):
        return reason
    shape = anatomy.prompt
    if not shape.prefix_dim:
        return f"a {anatomy.model_type} takes no keys and values from outside, which a prefix is"
    keys = {linear.fan_out for linear in anatomy.linears if linear.kind == "key"}
    outputs = [linear.fan_in for linear in anatomy.linears if linear.kind == "output"]
    # A fused projection gives the query too, which is as wide as what the attention's output reads.
    keys |= {(x.fan_out - outputs[0]) // 2 for x in anatomy.linears if x.kind == "qkv" and outputs}
    width = max(keys, default=0)
    wrong = f"PEFT's prefix would be {shape.prefix_dim} wide, where this model's keys are {width}"
    return "" if width == shape.prefix_dim else wrong


_TOKENS = {"tokens": "how many virtual tokens"}

PROMPT_TUNING = Method(
    name="prompt_tuning",
    title="Prompt tuning",
    source="arXiv:2104.08691",
    learning_rate=3e-2,
    learning_rate_source="PEFT's prompt tuning guide (AdamW)",
    settings=_TOKENS,
    allowed={"tokens": is_count},
    build=build_prompt,
    refuses=refuses,
    mergeable=False,
    starts_at_identity=False,
    reaches_kinds=False,
    takes_positions=True,
)
PREFIX_TUNING = Method(
    name="prefix_tuning",
    title="Prefix tuning",
    source="arXiv:2101.00190",
    learning_rate=1e-2,
    learning_rate_source="PEFT's prefix tuning guide (AdamW)",
    settings=_TOKENS,
    allowed={"tokens": is_count},
    build=build_prefix,
    refuses=refuses_prefix,
    tasks=("text-classification", "causal-lm"),
    mergeable=False,
    starts_at_identity=False,
    reaches_kinds=False,
    takes_positions=True,
)
P_TUNING = Method(
    name="p_tuning",
    title="P-tuning",
    source="arXiv:2103.10385",
    learning_rate=1e-3,
    learning_rate_source="PEFT's P-tuning guide (AdamW)",
    settings={**_TOKENS, "width": "hidden width of the prompt network"},
    allowed={"tokens": is_count, "width": is_count},
    build=build_p_tuning,
    refuses=refuses,
    mergeable=False,
    starts_at_identity=False,
    reaches_kinds=False,
    takes_positions=True,
)
