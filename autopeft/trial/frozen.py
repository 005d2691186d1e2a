"""Frozen-prefix reuse: what the layers below the lowest trained one give is the same in every trial, and computed once.

A forward pass is known by what goes into the pretrained model, bit for bit and shape by shape, and by the mode that it
computes in. What the last frozen layer gives is kept; the next time the frozen layers give that and compute nothing.
All else (embeddings, masks, positions) the model computes itself, so no architecture is known here, and a loss is bit
for bit what it is without.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from autopeft.layers import place_of
from autopeft.trial.reading import linear_shape
from autopeft.trial.states import States


@dataclass(slots=True)
class _Pass:
    """A forward pass under way.

    Attributes:
        start: Layers below it give `state`; 0 where nothing was kept.
        keep: Takes what the last frozen layer gave; None where that is kept already.
    """

    start: int
    state: Tensor | None
    keep: Callable[[Any], None] | None


class FrozenLayers:
    """The layers of a resident base model, of which those below an adapter need not be computed again.

    Not used are: an encoder-decoder, whose decoder reads the encoder's states in every layer; a model whose layers give
    more than hidden states (GPT-J, BLOOM), whose pretrained part is not called as a whole (OPT), or that says anything
    else when layers are left out, which is tried on a few tokens.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._pretrained = getattr(model, model.base_model_prefix, model)
        self._device: torch.device = model.device
        self._vocabulary = model.get_input_embeddings().num_embeddings
        self._stack, self._layers = _layers_of(model)
        self._pass: _Pass | None = None
        self._on = True
        self._works: dict[int, bool] = {}
        self._beside: tuple[None, ...] | None = None  # what layers give after hidden states, where that is a tuple
        self._random: set[Hashable] = set()

    @contextmanager
    def reused(self, adapted: Any, states: States, *, base: Hashable) -> Iterator[None]:
        """Reuse what the layers below the adapter give, in every forward pass of the block.

        Args:
            states: What is kept; where it has no room at all, the block is left as it is.
            base: What identifies the base's weights and what they compute in.
        """
        states.begin()
        if not states.limit_bytes:
            yield
            return
        cut = self.lowest_trained(adapted)
        if not cut or not self._can_start_at(cut):
            yield
            return

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._pass = self._look_up(states, base, cut, args, kwargs) if self._on else None

        with self._replaced(cut, begin):
            yield

    @contextmanager
    def computed(self) -> Iterator[None]:
        """Compute every layer in the block, and keep nothing: as it is where nothing is reused."""
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def lowest_trained(self, adapted: Any) -> int:
        """Give the lowest layer in which anything is trained: n_layers for what comes after them, 0 for before."""
        if not self._layers:
            return 0
        trained = {id(p) for p in adapted.parameters() if p.requires_grad}
        inside = {n: p for n, p in self._model.named_parameters(remove_duplicate=False) if p.requires_grad}
        if trained - {id(p) for p in inside.values()}:
            return 0  # a prompt, or what a method trains for all of its modules together
        lowest = len(self._layers)
        for name in inside:
            place = place_of(name)
            if place is not None and place.stack == self._stack:
                lowest = min(lowest, place.index)
            elif not name.startswith(self._after):
                return 0
        return lowest

    @cached_property
    def _after(self) -> tuple[str, ...]:
        """Beginnings of the names of what is first called when the last layer is done."""
        called: list[str] = []
        with ExitStack() as hooks:
            for name, module in self._model.named_modules():
                if not f"{self._stack}.".startswith(f"{name}." if name else "") and not name.startswith(self._stack):
                    hook = module.register_forward_pre_hook(lambda *_, name=name: called.append(f"{name}."))
                    hooks.callback(hook.remove)
            done = self._layers[-1].register_forward_hook(lambda *_: called.append(""))
            hooks.callback(done.remove)
            self._try()
        if "" not in called:
            return ()  # layers in layers, of which none is called itself
        last = len(called) - 1 - called[::-1].index("")
        return tuple(name for name in dict.fromkeys(called[last + 1 :]) if name not in called[:last])

    def _can_start_at(self, cut: int) -> bool:
        """Tell whether the model computes the same bits when the layers below one are left out; tried once."""
        if cut not in self._works:
            kept: list[Any] = []

            def keep(module: nn.Module, args: object) -> None:
                self._pass = _Pass(0, None, kept.append)

            def give(module: nn.Module, args: object) -> None:
                self._pass = _Pass(cut, kept[0], None)

            with self._replaced(cut, keep, with_kwargs=False):
                whole = self._try()
            self._works[cut] = len(kept) == 1 and kept[0] is not None
            if self._works[cut]:
                with self._replaced(cut, give, with_kwargs=False):
                    try:
                        parts = self._try()
                    except Exception:  # noqa: BLE001 - whatever it is, this model cannot do without a layer
                        parts = []
                same = map(torch.equal, parts, whole)
                self._works[cut] = len(parts) == len(whole) and all(same)
        return self._works[cut]

    @torch.no_grad()
    def _try(self) -> list[Tensor]:
        """Give what the model says of a few tokens: logits, and what it may add to them."""
        modes = [(module, module.training) for module in self._model.modules()]
        self._model.eval()
        ids = torch.arange(3, 11, device=self._device).view(2, 4)
        ids %= self._vocabulary
        mask = torch.ones_like(ids)
        mask[1, 3:] = 0
        try:
            said = tuple(self._model(input_ids=ids, attention_mask=mask).values())
            return [tensor for tensor in tree_iter(said) if isinstance(tensor, Tensor)]
        finally:
            for module, training in modes:
                module.training = training

    @contextmanager
    def _replaced(self, cut: int, begin: Callable[..., None], *, with_kwargs: bool = True) -> Iterator[None]:
        """Let the layers below a cut do what the pass under way says, which begins with `begin`."""

        def end(module: nn.Module, args: object, output: object) -> None:
            self._pass = None

        with ExitStack() as undo:
            hook = self._pretrained.register_forward_pre_hook(begin, with_kwargs=with_kwargs)
            undo.callback(hook.remove)
            undo.callback(self._pretrained.register_forward_hook(end, always_call=True).remove)
            for i, layer in enumerate(self._layers[:cut]):
                undo.enter_context(_forward_set(layer, self._giving(i, cut, layer.forward)))
            yield

    def _giving(self, i: int, cut: int, real: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            now = self._pass
            if now is not None and i < now.start:
                return now.state if self._beside is None else (now.state, *self._beside)
            output = real(*args, **kwargs)
            if i == cut - 1:
                state = self._states_in(output)
                assert state is None or not state.requires_grad, f"something below layer {cut} is trained"
                if now is not None and now.keep is not None:
                    now.keep(state)
            return output

        return forward

    def _states_in(self, output: Any) -> Tensor | None:
        """Give the hidden states among what a layer gave; None where that is more, such as keys and values."""
        if isinstance(output, tuple) and output and all(other is None for other in output[1:]):
            self._beside = output[1:]
            output = output[0]
        return output if isinstance(output, Tensor) else None

    def _look_up(
        self, states: States, base: Hashable, cut: int, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> _Pass | None:
        """Find the highest layer below the cut from which on to compute; None where nothing can be reused."""
        key, mode = _key(args, kwargs), self._mode()
        if key is None or mode in self._random:
            return None
        before = self._random_state()

        def keep(output: Tensor) -> None:
            if torch.equal(before, self._random_state()):
                states.put((base, mode, cut), key, output)
            else:  # dropout: no two passes are alike
                self._random.add(mode)

        for start in range(cut, 0, -1):
            state = states.get((base, mode, start), key)
            if state is not None:
                # A copy, so that no layer can change what is kept.
                return _Pass(start, state.to(self._device, copy=True), keep if start < cut else None)
        return _Pass(0, None, keep)

    def _mode(self) -> Hashable:
        kind = self._device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return self._pretrained.training, torch.is_inference_mode_enabled(), autocast

    def _random_state(self) -> Tensor:
        return torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else torch.get_rng_state()


def _layers_of(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """Give the name of the stack of layers, and these; none where there is not exactly one stack."""
    linears = [name for name, module in model.named_modules() if linear_shape(module) is not None]
    stacks = {place.stack for name in linears if (place := place_of(name)) is not None}
    return (only := stacks.pop(), list(model.get_submodule(only).children())) if len(stacks) == 1 else ("", [])


@contextmanager
def _forward_set(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module do something else when it is called."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _key(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable:
    """Identify what goes into the pretrained model; None where it is more than the tokens of a batch.

    Such as what a generation keeps of the tokens before, or embeddings in place of tokens.
    """
    found: list[Hashable] = []
    for name, value in [*enumerate(args), *kwargs.items()]:
        if isinstance(value, Tensor) and not value.is_floating_point():
            content = value.detach().cpu().contiguous().numpy().tobytes()
            found.append((name, value.dtype, tuple(value.shape), hashlib.blake2b(content, digest_size=16).digest()))
        elif isinstance(value, bool | int | str) and not (name == "use_cache" and value):
            found.append((name, value))
        elif value is not None:
            return None
    return tuple(found)
