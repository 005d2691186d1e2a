"""Cartridges: a trained cache of keys and values that every layer reads as if it stood before the text.

It differs from prefix tuning in that its first token stays as it was drawn, for models attend to the first token
whatever it says.

Source: Eyuboglu et al., arXiv:2506.06266.
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy
from autopeft.methods.method import Build, Method, Settings, is_count
from autopeft.methods.prompts import refuses_prefix, tokens_of


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Train a key and a value for each token but the first and each layer."""
    tokens, shape = tokens_of(settings), anatomy.prompt
    params = (tokens - 1) * shape.layers * 2 * shape.prefix_dim
    return Build({}, params, {"peft_type": "CARTRIDGE", "num_virtual_tokens": tokens, "num_frozen_tokens": 1})


METHOD = Method(
    name="cartridge",
    title="Cartridge",
    source="arXiv:2506.06266",
    learning_rate=1e-2,
    learning_rate_source="as for prefix tuning",
    settings={"tokens": "how many virtual tokens, the first of which is not trained"},
    allowed={"tokens": lambda value: is_count(value) and value != 1},
    build=build,
    refuses=refuses_prefix,
    tasks=("text-classification", "causal-lm"),  # as prefix tuning: in an encoder-decoder PEFT splits it wrongly
    mergeable=False,
    starts_at_identity=False,
    reaches_kinds=False,
    takes_positions=True,
)
