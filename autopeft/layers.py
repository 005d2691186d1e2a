"""Where the modules of a model lie, and what each is to its layer; read off their names and shapes alone.

A linear belongs to the layer that the first number in its name counts. Within a layer the attention block is the one
that holds the query (or the fused query-key-value), its other linears are the output; of the rest, those that write
the layer's width are `down`, those that read it for a `down` are `up` (or `gate`, by name), and one that reads it for
nobody is a `router`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from autopeft.anatomy import Linear

# Leaf names of the three projections; a model that fuses them has one linear for all.
_SUFFIX = "(_?(proj|lin|linear|layer|head))?"
_QUERY = re.compile(f"(q|query|wq|to_q){_SUFFIX}", re.IGNORECASE)
_KEY = re.compile(f"(k|key|wk|to_k){_SUFFIX}", re.IGNORECASE)
_VALUE = re.compile(f"(v|value|wv|to_v){_SUFFIX}", re.IGNORECASE)
_FUSED = re.compile(f"(c_attn|w?qkv|query_key_value|q_?k_?v){_SUFFIX}", re.IGNORECASE)
# A piece of a projection, such as the two factors of a low-rank query.
_PIECE = re.compile(r"(q|k|v|kv|query|key|value)_.*", re.IGNORECASE)
_OUTPUT = re.compile(r".*(out|dense|proj|wo).*|o", re.IGNORECASE)
# A gate fused with `up` counts as `up`.
_GATE = re.compile(r"(?!.*up).*gate.*|wi_0|w1", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a module name lies: its stack ("encoder.layer"), index in it, and the rest of the name."""

    stack: str
    index: int
    rest: str


def place_of(name: str) -> Place | None:
    """Read the place of a module off its name; None outside any stack of layers.

    >>> place_of("model.layers.3.mlp.up_proj")
    Place(stack='model.layers', index=3, rest='mlp.up_proj')
    """
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit() and 0 < i < len(parts) - 1:
            return Place(".".join(parts[:i]), int(part), ".".join(parts[i + 1 :]))
    return None


def number_layers(places: Iterable[Place]) -> dict[tuple[str, int], int]:
    """Number the layers of all stacks in forward order: (stack, index) -> layer."""
    stacks: dict[str, set[int]] = {}
    for place in places:
        stacks.setdefault(place.stack, set()).add(place.index)
    keys = [(stack, index) for stack, indices in stacks.items() for index in sorted(indices)]
    return {key: number for number, key in enumerate(keys)}


def describe_linears(shapes: Sequence[tuple[str, int, int]]) -> tuple[Linear, ...]:
    """Give every linear of a layer stack its layer and kind.

    Args:
        shapes: (module name, fan in, fan out) in the model's order.
    """
    placed = [(place, shape) for shape in shapes if (place := place_of(shape[0])) is not None]
    layers = number_layers(place for place, _ in placed)
    by_layer: dict[int, list[tuple[Place, tuple[str, int, int]]]] = {}
    for place, shape in placed:
        by_layer.setdefault(layers[place.stack, place.index], []).append((place, shape))
    return tuple(
        Linear(shape[0], kind, layer, shape[1], shape[2])
        for layer, members in sorted(by_layer.items())
        for (_, shape), kind in zip(members, _kinds([(p.rest, s[1], s[2]) for p, s in members]), strict=True)
    )


def _kinds(members: Sequence[tuple[str, int, int]]) -> list[str]:
    """Name the kinds of one layer's linears, given (name within the layer, fan in, fan out)."""
    paths = [rest.split(".") for rest, _, _ in members]
    shared = 0
    while len(paths) > 1 and all(len(p) > shared + 1 for p in paths) and len({p[shared] for p in paths}) == 1:
        shared += 1
    blocks = [tuple(p[shared : shared + 1]) if len(p) > shared + 1 else () for p in paths]
    # Where all linears lie in one block, as beside experts that are no linears, that block is the shared prefix.
    attention = {b for b, p in zip(blocks, paths, strict=True) if (b or shared) and _reads_query(p[-1])}
    # Most linears read or write what the layer passes on.
    width = Counter(size for _, *sizes in members for size in sizes).most_common(1)[0][0]
    read = {fan_in for _, fan_in, fan_out in members if fan_out == width != fan_in}
    kinds = []
    for block, path, (_, fan_in, fan_out) in zip(blocks, paths, members, strict=True):
        # A bare number, as in a Sequential, would be read as a layer.
        leaf = path[-1] if not path[-1].isdigit() else ".".join(path[-2:])
        projection = _projection(leaf)
        if projection and (block in attention or not attention):
            kinds.append(projection)
        elif block in attention:
            kinds.append("output" if _OUTPUT.fullmatch(leaf) and not _PIECE.fullmatch(leaf) else leaf)
        elif fan_in == width != fan_out:
            # A gate fused with `up` is twice as wide as what `down` reads.
            feeds = fan_out in read or fan_out / 2 in read
            kinds.append("router" if not feeds else "gate" if _GATE.fullmatch(leaf) else "up")
        elif fan_out == width != fan_in:
            kinds.append("down")
        else:
            kinds.append(leaf)
    return kinds


def _reads_query(leaf: str) -> bool:
    return _projection(leaf) in ("query", "qkv") or (_PIECE.fullmatch(leaf) is not None and leaf[0] in "qQ")


def _projection(leaf: str) -> str | None:
    for kind, pattern in (("query", _QUERY), ("key", _KEY), ("value", _VALUE), ("qkv", _FUSED)):
        if pattern.fullmatch(leaf):
            return kind
    return None


def layer_groups(n_layers: int, count: int | Literal["each"]) -> tuple[tuple[int, int], ...]:
    """Cut the layers into contiguous groups (first, last), as equal as can be.

    >>> layer_groups(6, 4)
    ((0, 1), (2, 3), (4, 4), (5, 5))
    """
    n = n_layers if count == "each" else min(count, n_layers)
    size, extra = divmod(n_layers, n)
    ends, start = [], 0
    for i in range(n):
        stop = start + size + (i < extra)
        ends.append((start, stop - 1))
        start = stop
    return tuple(ends)
