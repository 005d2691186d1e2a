"""Full fine-tuning, of everything or of the top layers: what the parameter-efficient methods are measured against."""

from __future__ import annotations

from autopeft.anatomy import Anatomy
from autopeft.methods.method import Build, Method, Settings, is_count, number


def build_all(settings: Settings, anatomy: Anatomy) -> Build:
    """Train every parameter of the model."""
    # A new head is trained beside every method, and is no part of it.
    return Build({}, anatomy.base_params, {"adapter_type": "weights", "modules": [""], "except": list(anatomy.head)})


def build_top(settings: Settings, anatomy: Anatomy) -> Build:
    """Train every parameter of the last `top` layers; of an encoder-decoder the decoder's come last."""
    top = anatomy.blocks[-int(number(settings.get("top"), 1)) :]
    config = {"adapter_type": "weights", "modules": [block.name for block in top], "except": []}
    return Build({}, sum(block.params for block in top), config)


_LEARNING_RATE = 3e-5
_SOURCE = "Devlin et al. 2018, appendix A.3"

FULL = Method(
    name="full",
    title="Full fine-tuning",
    source="arXiv:1810.04805",
    learning_rate=_LEARNING_RATE,
    learning_rate_source=_SOURCE,
    settings={},
    allowed={},
    build=build_all,
    bits=(16, 32),
    reaches_kinds=False,
    reference=True,
)
TOP_LAYERS = Method(
    name="top_layers",
    title="Fine-tuning of the top layers",
    source="arXiv:1911.03090",
    learning_rate=_LEARNING_RATE,
    learning_rate_source=_SOURCE,
    settings={"top": "how many layers, counted from the last"},
    allowed={"top": is_count},
    build=build_top,
    bits=(16, 32),
    reaches_kinds=False,
    reference=True,
)
