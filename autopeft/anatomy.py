"""What a model is made of: layers in order, kinds of module, (in, out) of every linear; no weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

KINDS = ("query", "key", "value", "qkv", "output", "gate", "up", "down")
"""The kinds every model is described in; a linear of none is a "router", or its own leaf name is its kind."""

Task = Literal["text-classification", "causal-lm", "seq2seq-lm"]

UNQUANTISED = ("lm_head", "classifier", "score", "pre_classifier", "classification_head")
"""Modules that stay unquantised in a base of 8 or 4 bits: heads, which are trained or decide every token."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear inside a layer.

    Attributes:
        layer: Counts from 0 in forward order, encoder before decoder.
        bias: Whether it adds a bias.
        transposed: Whether its weight is stored (fan_in, fan_out), as that of GPT-2's Conv1D.
        plain: Whether it is an nn.Linear itself, not of a class made of it.
    """

    name: str
    kind: str
    layer: int
    fan_in: int
    fan_out: int
    bias: bool = False
    transposed: bool = False
    plain: bool = True


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalisation layer and the scalars it holds; `layer` is None outside the stack (embedding, final)."""

    name: str
    layer: int | None
    params: int


@dataclass(frozen=True, slots=True)
class Bias:
    """A bias and its scalars: of a linear, with that linear's kind, or of a norm, of kind "norm".

    Attributes:
        name: Name of the parameter.
        layer: None outside the layers.
    """

    name: str
    kind: str
    layer: int | None
    params: int


@dataclass(frozen=True, slots=True)
class Block:
    """Everything of one layer: the module that holds it, and its parameters, each counted where it first appears."""

    name: str
    layer: int
    params: int


@dataclass(frozen=True, slots=True)
class Attention:
    """A self-attention that can be given more keys and values: its module, and how many heads of which widths."""

    name: str
    layer: int
    heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class PromptShape:
    """What the prompt methods need to know: a prompt is of `token_dim`, the size of an embedding; a prefix has, for
    each of `layers`, a key and a value of `prefix_dim` (smaller with grouped-query attention), 0 where the model takes
    none."""

    token_dim: int
    layers: int
    prefix_dim: int


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The input embedding, and which of its rows matter.

    Attributes:
        embedding: Name of the module.
        tied: Linears that share its weight, such as the output layer.
        copies: Other embeddings that share its weight, as those of an encoder and a decoder do.
        frequent: Tokens of the training data, the most frequent first; none where no data was looked at.
    """

    embedding: str
    tied: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    frequent: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Vocabulary:
        """Rebuild from plain values."""
        lists = {name: tuple(values) for name, values in data.items() if name != "embedding"}
        return cls(embedding=data["embedding"], **lists)


@dataclass(frozen=True, slots=True)
class Anatomy:
    """A model without its weights.

    Attributes:
        base_params: Parameters of the pretrained model, shared ones once, without a new task head.
        head: Top-level module -> parameters, of a task head that is new and trained whole.
        dtype_bits: Bits of a parameter in the checkpoint, 16 or 32.
        outer_linear: Scalars of the linears outside the layers that see every token: a language model's head.
        biases: Those of linears and norms, without a new task head's.
        blocks: The layers in order, as modules.
        attentions: The attentions in order; none where the model computes them in a way of its own.
    """

    model_type: str
    task: Task
    base_params: int
    n_layers: int
    linears: tuple[Linear, ...]
    norms: tuple[Norm, ...]
    prompt: PromptShape
    head: Mapping[str, int]
    dtype_bits: int = 32
    vocabulary: Vocabulary = Vocabulary("")
    outer_linear: int = 0
    biases: tuple[Bias, ...] = ()
    blocks: tuple[Block, ...] = ()
    attentions: tuple[Attention, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds this model has, in the order of KINDS, then its own."""
        own = dict.fromkeys(linear.kind for linear in self.linears)
        return tuple(k for k in KINDS if k in own) + tuple(k for k in own if k not in KINDS)

    @property
    def head_params(self) -> int:
        """Parameters of the new task head."""
        return sum(self.head.values())

    def on_data(self, frequent: Iterable[int]) -> Anatomy:
        """Give the anatomy together with the most frequent tokens of the training data."""
        return replace(self, vocabulary=replace(self.vocabulary, frequent=tuple(frequent)))

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Anatomy:
        """Rebuild from `to_dict`."""
        return cls(
            **{
                **data,
                "linears": tuple(Linear(**x) for x in data["linears"]),
                "norms": tuple(Norm(**x) for x in data["norms"]),
                "prompt": PromptShape(**data["prompt"]),
                "vocabulary": Vocabulary.from_dict(data.get("vocabulary", {"embedding": ""})),
                "biases": tuple(Bias(**x) for x in data.get("biases", ())),
                "blocks": tuple(Block(**x) for x in data.get("blocks", ())),
                "attentions": tuple(Attention(**x) for x in data.get("attentions", ())),
            }
        )
