"""The base with the adapters of several candidates on it at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.anatomy import Task
from autopeft.errors import TrialError
from autopeft.trial.generators import random_state, same_state
from autopeft.trial.modules import Parts
from autopeft.trial.prepared import IGNORED
from autopeft.trial.together.lifted import Bare, Lifted
from autopeft.trial.together.sites import Own, Products, Site, StandIn, is_plain_product, with_parts
from autopeft.trial.together.streams import DrawApart, Stream

Batch = Mapping[str, Tensor]


class Group:
    """Candidates on one base, while it is entered; left, the base is bare and each adapter whole again.

    Args:
        bare: The base, with nothing attached.
        lifted: The candidates' adapters.
        streams: Their random numbers.
        stacked: Of each, whether plain LoRA products may be stacked: not where an optimiser asks how B lies.
    """

    def __init__(
        self,
        bare: Bare,
        lifted: Sequence[Lifted],
        streams: Sequence[Stream],
        *,
        task: Task,
        device: str,
        stacked: Sequence[bool],
    ) -> None:
        self._bare, self._lifted, self._streams, self._stacked = bare, lifted, streams, stacked
        self._model, self._task, self._device = bare.model, task, device
        self._count = len(lifted)
        self._sites: dict[nn.Module, Site] = {}
        self._replaced: list[tuple[nn.Module, nn.Module]] = []  # (adapter's layer, the frozen module inside it)
        self._apart = DrawApart(streams) if _drops(self._model) else None

    def __enter__(self) -> Group:
        owners: dict[nn.Module, dict[int, Own]] = defaultdict(dict)
        products: dict[nn.Module, dict[int, Any]] = defaultdict(dict)
        for i, lifted in enumerate(self._lifted):
            for base, layer, twin in self._layers(lifted):
                if twin is None and self._stacked[i] and is_plain_product(layer):
                    products[base][i] = layer
                else:
                    owners[base][i] = self._own(base, layer, twin, self._streams[i])
        for base in dict.fromkeys((*owners, *products)):
            layers = products[base]
            stack = Products(layers, count=self._count, streams=self._streams) if layers else None
            self._sites[base] = Site(base, owners[base], stack, count=self._count)
        for module, parts in self._bare.parts.items():
            for leaf, child in parts.children.items():
                if child in self._sites:
                    module._modules[leaf] = self._sites[child]
        self._model.train()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for module, parts in self._bare.parts.items():
            module._modules.update(parts.children)
        for layer, base in self._replaced:
            layer._modules["base_layer"] = base
        for site in self._sites.values():
            if site.products is not None:
                site.products.part()
        self._sites.clear()
        self._replaced.clear()

    def _layers(self, lifted: Lifted) -> Iterator[tuple[nn.Module, nn.Module, nn.Module | None]]:
        """Give what an adapter has in the place of which module of the base, and that one's twin if it is changed."""
        twins = {
            module: self._twin(module, parts) for module, parts in lifted.parts.items() if self._is_own(module, parts)
        }
        found: dict[nn.Module, set[nn.Module]] = defaultdict(set)
        for module, bare in self._bare.parts.items():
            now = lifted.parts.get(module, bare).children
            for leaf, child in bare.children.items():
                if child is not None:
                    found[child].add(now[leaf])
        for base, layers in found.items():
            if len(layers) > 1:
                raise TrialError("together: an adapter takes one of several places of a module of the base")
            (layer,) = layers
            if layer is not base or base in twins:
                yield base, layer, twins.get(base)

    def _is_own(self, module: nn.Module, parts: Parts) -> bool:
        """Tell whether an adapter changes a module itself, and not only exchanges what is inside."""
        bare = self._bare.parts[module]
        return not replace(parts, children=bare.children).equals(bare)

    def _own(self, base: nn.Module, layer: nn.Module, twin: nn.Module | None, stream: Stream) -> Own:
        """Let an adapter's layer work with what is known of the base's output."""
        if layer is base:
            assert twin is not None
            return Own(twin, twin if isinstance(twin, StandIn) else None, stream)
        inside = next((m for m in layer.modules() if m._modules.get("base_layer") is base), None)
        if inside is None and twin is not None:
            raise TrialError("together: an adapter hides a module of the base that another part of it changes")
        # A trained head keeps nothing frozen; and PEFT knows an embedding by its class.
        if inside is None or (twin is None and isinstance(base, nn.Embedding)):
            return Own(layer, None, stream)
        inner = twin or StandIn(base)
        self._replaced.append((inside, base))
        inside._modules["base_layer"] = inner
        return Own(layer, inner if isinstance(inner, StandIn) else None, stream)

    def _twin(self, module: nn.Module, parts: Parts) -> nn.Module:
        """Make a module with an adapter's own parameters or hooks; with hooks alone it needs no weights."""
        bare = self._bare.parts[module]
        if bare.children:
            raise TrialError("together: an adapter changes a module that has modules inside")
        if not replace(bare, children=parts.children, hooks=parts.hooks, pre_hooks=parts.pre_hooks).equals(parts):
            return with_parts(module, parts)
        stand_in = StandIn(module)
        replace(parts, children={**parts.children, "base_layer": module}, parameters={}).put_in(stand_in)
        return stand_in

    def losses(self, part: Batch) -> list[Tensor]:
        """Give each candidate's loss on the same rows.

        Raises:
            TrialError: If the rows of the candidates cannot be told apart, or what the base draws for each.
        """
        labels = part["labels"]
        inputs = inputs_of(self._model, part, self._task)
        inputs = {name: t.repeat(self._count, *[1] * (t.dim() - 1)) for name, t in inputs.items()}
        before = random_state(self._device)
        # Some models, as OPT, make rows of the tokens for a while; `check` finds those with other rows of that number.
        rows = self._count * len(labels)
        sizes = rows, rows * part["input_ids"].shape[1]
        for site in self._sites.values():
            site.sizes = sizes
        if self._apart is None:
            logits = self._model(**inputs).logits
        else:
            self._apart.sizes = sizes
            with self._apart:
                logits = self._model(**inputs).logits
        if not same_state(before, random_state(self._device)):
            raise TrialError("together: the base draws random numbers for several candidates at once")
        return [loss_of(self._model, own, labels, self._task) for own in logits.chunk(self._count)]


def _drops(model: Any) -> bool:
    """Tell whether a base has dropout; one that hides it is found out by what it draws."""
    config = model.config.to_dict()
    return any(isinstance(v, float) and v > 0 for n, v in config.items() if "drop" in n)


def inputs_of(model: Any, part: Batch, task: Task) -> dict[str, Tensor]:
    """Give what the model is called with for its logits; a decoder's input is made of the labels, as the model does."""
    inputs = {name: tensor for name, tensor in part.items() if name != "labels"}
    if task == "seq2seq-lm":
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=part["labels"])
    return inputs


def loss_of(model: Any, logits: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Compute the loss as the model does; `computes_loss` makes sure of that."""
    if task == "causal-lm":
        return model.loss_function(logits=logits, labels=labels, vocab_size=model.config.vocab_size)
    return nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1), ignore_index=IGNORED)


def computes_loss(model: Any, part: Batch, task: Task) -> bool:
    """Tell whether the model's own loss on a batch is bit for bit the one of `loss_of`."""
    with torch.inference_mode():
        logits = model(**inputs_of(model, part, task)).logits
        return bool(torch.equal(model(**part).loss, loss_of(model, logits, part["labels"], task)))
