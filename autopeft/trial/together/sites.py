"""Where candidates trained together differ: the frozen module runs once on the rows of all, each adapter on its own.

An adapter's own layer does the arithmetic, PEFT's or ours, so that every method whose effect is local to a module can
be trained so; only LoRA's plain product has a faster form here, one pair of matrix products for all candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from autopeft.errors import TrialError
from autopeft.trial.generators import same_state
from autopeft.trial.modules import Parts
from autopeft.trial.reading import linear_shape
from autopeft.trial.together.streams import Stream

_ADAPTER = "default"  # PEFT's name for an adapter that is given none


class StandIn(nn.Module):
    """Stands in an adapter's layer for the frozen module, whose output for the candidate's rows is known already.

    An adapter that asks for the output of another input, as IA3 does before a feed-forward layer, gets it computed.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base  # by this name PEFT finds the frozen weights
        self.asks = True
        self._known: tuple[Tensor, Tensor] | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)

    def know(self, known: tuple[Tensor, Tensor] | None) -> None:
        """Take an input and the frozen module's output for it; forget them with None."""
        self._known = known

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Give the frozen module's output."""
        if self._known is not None and x is self._known[0]:
            self.asks = True
            return self._known[1]
        return self.base_layer(x, *args, **kwargs)


class Own:
    """What one candidate has in the place of a frozen module.

    Args:
        module: Called with the candidate's rows.
        stand_in: The frozen module's place inside it; None if it has no use for it.
    """

    def __init__(self, module: nn.Module, stand_in: StandIn | None, stream: Stream) -> None:
        self.module, self.stand_in, self._stream = module, stand_in, stream
        self._draws: bool | None = None  # known after the first call

    @property
    def shares(self) -> bool:
        """Whether it wants the frozen module's output for its rows."""
        return self.stand_in is not None and self.stand_in.asks

    def __call__(self, x: Tensor, output: Tensor | None) -> Tensor:
        """Give the candidate's output for its rows."""
        if self.stand_in is not None:
            self.stand_in.asks = False
            # Some layers of PEFT add to it in place.
            self.stand_in.know(None if output is None else (x, output.clone()))
        try:
            if self._draws is False:
                return self.module(x)
            before = self._stream.state
            with self._stream:
                own: Tensor = self.module(x)
            if self._draws is None:
                self._draws = not same_state(before, self._stream.state)
            return own
        finally:
            if self.stand_in is not None:
                self.stand_in.know(None)


class Products(nn.Module):
    """The plain LoRA products of several candidates at one linear: stacked, and padded with zeros to the largest rank.

    While it stands, the candidates' own A and B are views into the stacks, and so are their gradients: what an
    optimiser does to them is done here. B lies transposed, so that each view is dense. The padding has no gradient, as
    each factor is zero where the other is padded.

    Args:
        layers: Candidate -> its layer.
        count: Of candidates in all.
        streams: Those of all candidates.
    """

    def __init__(self, layers: Mapping[int, LoraLayer], *, count: int, streams: Sequence[Stream]) -> None:
        super().__init__()
        self._layers = list(layers.values())
        self._pairs = [(layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight) for layer in self._layers]
        first, _ = self._pairs[0]
        rank = max(a.shape[0] for a, _ in self._pairs)
        fan_in, fan_out = first.shape[1], self._pairs[0][1].shape[0]
        self.down = first.new_zeros(len(layers), rank, fan_in)
        self.up = first.new_zeros(len(layers), rank, fan_out)
        scales = [layer.scaling[_ADAPTER] for layer in self._layers]
        self._scale = torch.tensor(scales, device=first.device, dtype=first.dtype).view(-1, 1, 1)
        self._count, self._whole = count, len(layers) == count
        self._at = torch.tensor(list(layers), device=first.device)
        drops = [layer.lora_dropout[_ADAPTER] for layer in self._layers]
        self._drops = {i: (drop, streams[c]) for i, (c, drop) in enumerate(zip(layers, drops, strict=True)) if _p(drop)}
        self._share()

    def _share(self) -> None:
        for stack in (self.down, self.up):
            stack.grad = torch.zeros_like(stack)
        for i, (a, b) in enumerate(self._pairs):
            rank = a.shape[0]
            for weight, stack, turned in ((a, self.down, False), (b, self.up, True)):
                values, slopes = stack.detach()[i, :rank], stack.grad[i, :rank]
                values, slopes = (values.T, slopes.T) if turned else (values, slopes)
                values.copy_(weight.detach())
                weight.data, weight.grad = values, slopes
        self.down.requires_grad_(True)
        self.up.requires_grad_(True)

    def part(self) -> None:
        """Give every candidate tensors of its own again."""
        for weight in (w for pair in self._pairs for w in pair):
            weight.data, weight.grad = weight.data.clone(), None

    def added_to(self, output: Tensor, x: Tensor) -> Tensor:
        """Add each candidate's product to its rows of the frozen linear's output.

        Args:
            output: ``(rows of all candidates, ..., fan_out)``.
            x: The linear's input, ``(rows of all candidates, ..., fan_in)``.
        """
        rows = x.reshape(self._count, -1, x.shape[-1])
        if not self._whole:
            rows = rows.index_select(0, self._at)
        if not torch.is_autocast_enabled(x.device.type):
            rows = rows.to(self.down.dtype)
        if self._drops:
            rows = torch.stack([self._dropped(i, own) for i, own in enumerate(rows.unbind())])
        inner = torch.bmm(rows, self.down.transpose(1, 2)) * self._scale
        onto = output.reshape(self._count, -1, output.shape[-1])
        if self._whole and onto.dtype == inner.dtype == self.up.dtype:
            return torch.baddbmm(onto, inner, self.up).view(output.shape)
        product = torch.bmm(inner, self.up).to(output.dtype)
        return (onto + product if self._whole else onto.index_add(0, self._at, product)).view(output.shape)

    def _dropped(self, i: int, rows: Tensor) -> Tensor:
        if i not in self._drops:
            return rows
        drop, stream = self._drops[i]
        with stream:
            return drop(rows)


def _p(drop: nn.Module) -> float:
    return float(drop.p) if isinstance(drop, nn.Dropout) else 0.0


def is_plain_product(module: nn.Module) -> bool:
    """Tell LoRA's plain product at a linear: no variant, no bias, one adapter."""
    return (
        isinstance(module, LoraLayer)
        and linear_shape(module.get_base_layer()) is not None
        and list(module.lora_A) == [_ADAPTER]
        and not module.lora_variant
        and not module.lora_bias[_ADAPTER]
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


class Site(nn.Module):
    """The place of a frozen module in which candidates differ.

    Args:
        base: The frozen module.
        own: Candidate -> what it has here; who is neither here nor in `products` has the frozen module.
        products: The plain LoRA products of other candidates.
        count: Of candidates in all.
    """

    def __init__(self, base: nn.Module, own: Mapping[int, Own], products: Products | None, *, count: int) -> None:
        super().__init__()
        self.base, self.products = base, products
        self._modules |= {f"own_{i}": one.module for i, one in own.items()}
        self._own, self._count = own, count
        self.sizes: tuple[int, ...] = ()  # how many rows all candidates may have, on the batch at hand

    def __getattr__(self, name: str) -> Any:
        # Models ask their linears for the type of the weight.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Give the outputs of all candidates, in the order of their rows.

        Raises:
            TrialError: If the rows of the candidates cannot be told apart here.
        """
        if args or kwargs or x.shape[0] not in self.sizes:
            raise TrialError("together: a module is called with something else than the rows of all candidates")
        output = self._outputs(x) if self._own else self.base(x)
        return output if self.products is None else self.products.added_to(output, x)

    def _outputs(self, x: Tensor) -> Tensor:
        rows = x.chunk(self._count)
        sharing = [i for i in range(self._count) if i not in self._own or self._own[i].shares]
        outputs: dict[int, Tensor] = {}
        if sharing:
            shared = self.base(x if len(sharing) == self._count else torch.cat([rows[i] for i in sharing]))
            outputs = dict(zip(sharing, shared.chunk(len(sharing)), strict=True))
        return torch.cat(
            [self._own[i](rows[i], outputs.get(i)) if i in self._own else outputs[i] for i in range(self._count)]
        )


def with_parts(module: nn.Module, parts: Parts) -> nn.Module:
    """Give a module like another, made of other parts; it shares what is not exchanged."""
    twin = object.__new__(type(module))
    vars(twin).update(vars(module))
    for name in ("_modules", "_parameters", "_forward_hooks", "_forward_pre_hooks"):
        vars(twin)[name] = type(vars(module)[name])()
    parts.put_in(twin)
    return twin
