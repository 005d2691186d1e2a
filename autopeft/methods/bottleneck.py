"""Bottleneck adapters: small two-layer networks, behind a block (serial) or beside it (parallel).

A serial adapter acts on what a block has computed, after the attention and the feed-forward (Houlsby et al.,
arXiv:1902.00751) or after the feed-forward only (Pfeiffer et al., arXiv:2005.00052). A parallel one reads what the
block reads and adds to what it writes (He et al., arXiv:2110.04366).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from autopeft.anatomy import Anatomy, Linear
from autopeft.methods.method import Build, Method, Settings, is_amount, is_count, number
from autopeft.space import setting_at

Position = Literal["serial", "parallel"]

ACTIVATIONS = ("relu", "gelu", "silu")

_BLOCKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "attention": ("output", ("query", "qkv")),
    "feed_forward": ("down", ("up", "gate")),
}
"""Place -> the kind of linear that writes a block's output, and the kinds that read its input."""

_TRANSPOSED = ("longformer", "led")
"""Models whose attention reads (length, batch, width) and writes (batch, length, width)."""

DEFAULT_SIZE = 16


@dataclass(frozen=True, slots=True)
class Site:
    """A block: its place, the linear that reads its input (None if none is known), the one that writes its output."""

    place: str
    reader: Linear | None
    writer: Linear


def sites(anatomy: Anatomy) -> list[Site]:
    """Give the blocks of a model in order; a block's reader is the last of its kinds before the writer.

    An encoder-decoder's cross-attention is a block of its own.
    """
    found = []
    for place, (writes, reads) in _BLOCKS.items():
        reader = None
        for linear in anatomy.linears:
            if linear.kind in reads:
                reader = linear
            elif linear.kind == writes:
                same = reader is not None and (reader.layer, reader.fan_in) == (linear.layer, linear.fan_out)
                found.append(Site(place, reader if same else None, linear))
    return found


def trainable_params(width: int, *, size: int) -> int:
    """Count one adapter's trained scalars: two matrices and their biases.

    >>> trainable_params(768, size=48)
    74544
    """
    return 2 * width * size + size + width


def build(position: Position, settings: Settings, anatomy: Anatomy) -> Build:
    """Place an adapter of the layer's size at every block that is on and that the model lets one stand at."""
    placed = []
    for site in _usable(position, anatomy):
        on = number(setting_at(settings.get("layers", 1), layer=site.writer.layer), 1)
        size = int(number(setting_at(settings.get(site.place, DEFAULT_SIZE), layer=site.writer.layer), 0))
        if on and size:
            placed.append((site, size))
    config: dict[str, Any] = {
        "adapter_type": "bottleneck",
        "position": position,
        "activation": str(settings.get("activation", "relu")),
        "scaling": number(settings.get("scaling"), _SCALING[position]),
        "sites": [[site.reader.name if site.reader else "", site.writer.name, size] for site, size in placed],
    }
    return Build(
        {f"{site.writer.name}.{position}": size for site, size in placed},
        sum(trainable_params(site.writer.fan_out, size=size) for site, size in placed),
        config,
    )


def refuses(position: Position, settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """A model may have no block of which the ends are linears."""
    if _usable(position, anatomy):
        return ""
    return f"this {anatomy.model_type} has no block for a {position} adapter: its ends must be linears of a layer"


def _usable(position: Position, anatomy: Anatomy) -> list[Site]:
    if position == "serial":
        return sites(anatomy)
    transposed = anatomy.model_type in _TRANSPOSED
    return [s for s in sites(anatomy) if s.reader is not None and not (transposed and s.place == "attention")]


_SCALING: dict[str, float] = {"serial": 1, "parallel": 4}


def _method(position: Position, title: str, source: str, learning_rate_source: str) -> Method:
    def is_size(value: Any) -> bool:
        return value == 0 or is_count(value)

    return Method(
        name=f"{position}_adapter",
        title=title,
        source=source,
        learning_rate=1e-4,
        learning_rate_source=learning_rate_source,
        settings={
            "layers": "1 where a layer is adapted",
            "attention": "width of the bottleneck at the attention, 0 for none",
            "feed_forward": "width of the bottleneck at the feed-forward, 0 for none",
            "activation": f"one of {', '.join(ACTIVATIONS)}",
            "scaling": "what the adapter's output is multiplied by",
        },
        allowed={
            "layers": is_amount,
            "attention": is_size,
            "feed_forward": is_size,
            "activation": lambda value: value in ACTIVATIONS,
            "scaling": lambda value: is_amount(value) and float(value) > 0,
        },
        build=partial(build, position),
        spread={"layers": ("layers",), "attention": ("layers",), "feed_forward": ("layers",)},
        refuses=partial(refuses, position),
        mergeable=False,
    )


SERIAL = _method(
    "serial",
    "Serial adapters",
    "arXiv:1902.00751, arXiv:2005.00052",
    "Pfeiffer et al. 2020",
)
PARALLEL = _method(
    "parallel",
    "Parallel adapters",
    "arXiv:2110.04366",
    "as for serial adapters",
)
