"""Adaption prompts (LLaMA-Adapter): the attention of the top layers also reads trained tokens, through a gate.

Source: Zhang et al., arXiv:2303.16199.
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy
from autopeft.methods.linears import one_size
from autopeft.methods.method import Build, Method, Settings, is_count

MODEL_TYPES = ("llama", "mistral", "gpt2")
"""Those whose attention PEFT knows how to wrap."""


def trainable_params(width: int, *, tokens: int) -> int:
    """Count one layer's trained scalars: its tokens and its gate.

    >>> trainable_params(4096, tokens=10)
    40961
    """
    return tokens * width + 1


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Give the attention of each of the top layers its own tokens and gate."""
    tokens, top = one_size(settings, "tokens", 10), min(one_size(settings, "top", 30), anatomy.n_layers)
    blocks = [
        linear.name.rpartition(".")[0]
        for linear in anatomy.linears
        if linear.kind in ("query", "qkv") and linear.layer >= anatomy.n_layers - top
    ]
    config = {
        "peft_type": "ADAPTION_PROMPT",
        "adapter_len": tokens,
        "adapter_layers": top,
        "target_modules": blocks[0].rpartition(".")[2] if blocks else "",
    }
    params = len(blocks) * trainable_params(anatomy.prompt.token_dim, tokens=tokens)
    return Build(dict.fromkeys(blocks, tokens), params, config)


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """PEFT knows the attention of a few families, and of these only heads that together are as wide as the model."""
    if anatomy.model_type not in MODEL_TYPES:
        return f"PEFT has adaption prompts for {', '.join(MODEL_TYPES)} only, not for a {anatomy.model_type}"
    for linear in anatomy.linears:
        if linear.kind == "query" and linear.fan_out != linear.fan_in:
            return f"PEFT takes all heads together to be {linear.fan_in} wide; {linear.name!r} gives {linear.fan_out}"
    return ""


METHOD = Method(
    name="adaption_prompt",
    title="Adaption prompt",
    source="arXiv:2303.16199",
    learning_rate=9e-3,
    learning_rate_source="Zhang et al. 2023, section 4.1",
    settings={
        "tokens": "how many virtual tokens a layer has",
        "top": "how many layers have them, from the top; all where there are fewer",
    },
    allowed={"tokens": is_count, "top": is_count},
    build=build,
    refuses=refuses,
    # PEFT trains no new head beside it.
    tasks=("causal-lm",),
    mergeable=False,
    reaches_kinds=False,
)
