"""Base layers of 4 and 8 bits without weights: the bytes of bitsandbytes' layers, and what they keep while training.

The modules are bitsandbytes' own, placed by transformers as it places them when it loads a checkpoint, so that the
same layers are quantised and PEFT wraps them as it does. Only their weights are fake, and their products are those of
bitsandbytes' CUDA backend (0.50), which holds a dequantised copy of a weight while it multiplies.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from bitsandbytes.functional import QuantState
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers.integrations.bitsandbytes import replace_with_bnb_linear

BLOCK = 64
"""Weights that share one scale in 4 bits (Dettmers & Zettlemoyer, arXiv:2212.09720; bitsandbytes' default)."""
NESTED_BLOCK = 256
"""Scales that share one scale of their own when twice quantised (Dettmers et al., arXiv:2305.14314)."""


def weight_bytes(fan_in: int, fan_out: int, *, bits: int, double_quant: bool = True) -> int:
    """Count the bytes of one quantised weight with its scales, without the code tables that all layers share.

    >>> weight_bytes(4096, 4096, bits=4), weight_bytes(4096, 4096, bits=4, double_quant=False)
    (8654852, 9437184)
    >>> weight_bytes(4096, 1024, bits=8)
    4198400
    """
    numel = fan_in * fan_out
    if bits == 8:
        return numel + 4 * fan_out
    blocks = -(-numel // BLOCK)
    packed = (numel + 1) // 2
    # A float a nested block, and one for the offset of all.
    return packed + (blocks + 4 * -(-blocks // NESTED_BLOCK) + 4 if double_quant else 4 * blocks)


# PEFT tells the kind of a weight by the name of its class.
class Params4bit(FakeTensor):
    """A packed weight of 4 bits without storage."""

    quant_state: QuantState

    def __deepcopy__(self, memo: Any) -> Params4bit:
        """Give itself: PEFT copies a layer only to read its norm."""
        return self


class Int8Params(FakeTensor):
    """A weight of 8 bits without storage."""

    CB: torch.Tensor | None
    SCB: torch.Tensor | None


class _Product4bit(torch.autograd.Function):
    """``x @ W.T`` with W dequantised for as long as the product takes, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, shape: Any) -> torch.Tensor:
        ctx.packed, ctx.shape = packed, shape
        return F.linear(x, x.new_empty(tuple(shape)), bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return torch.matmul(grad, grad.new_empty(tuple(ctx.shape))), None, None, None


class _Product8bit(torch.autograd.Function):
    """LLM.int8() (Dettmers et al., arXiv:2208.07339) without outlier columns: integer products, scaled back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, state: Any, bias: torch.Tensor | None) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        # bitsandbytes keeps the input although only outliers would need it.
        ctx.input, ctx.state = flat, state
        rows, fan_out = flat.shape[0], state.CB.shape[0]
        halved = flat.to(torch.float16)
        quantized, _scales = halved.to(torch.int8), flat.new_empty(rows, dtype=torch.float32)
        del halved
        wide = quantized.new_empty((rows, fan_out), dtype=torch.int32)
        del quantized
        out = wide.new_empty((rows, fan_out), dtype=torch.float16)
        out = out.to(x.dtype)
        if bias is not None:
            out = out + bias
        return out.view(*x.shape[:-1], fan_out)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dtype = ctx.input.dtype
        weight = ctx.state.CB.to(dtype, copy=True).mul_(ctx.state.SCB.unsqueeze(1).mul(1.0 / 127.0))
        flat = grad.reshape(-1, grad.shape[-1]).contiguous().to(dtype)
        return torch.matmul(flat, weight).view(*grad.shape[:-1], weight.shape[-1]), None, None


class Linear4bit(bnb.nn.Linear4bit):
    """bitsandbytes' layer on a weight without storage."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply in the compute dtype; give the input's."""
        given = x.dtype
        x = x.to(self.compute_dtype or given)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return _Product4bit.apply(x, self.weight, bias, self.weight.quant_state.shape).to(given)


class Linear8bit(bnb.nn.Linear8bitLt):
    """bitsandbytes' layer on a weight without storage."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply in 8 bits; give the input's type."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return _Product8bit.apply(x, self.state, bias)


def place_quantized(model: nn.Module, config: Any) -> None:
    """Put bitsandbytes' layers into a model on the meta device, where loading a checkpoint would put them."""
    replace_with_bnb_linear(model, modules_to_not_convert=config.llm_int8_skip_modules, quantization_config=config)
    flag = "is_loaded_in_8bit" if config.load_in_8bit else "is_loaded_in_4bit"
    setattr(model, flag, True)


def fake_weights(module: nn.Module, tables: dict[str, torch.Tensor]) -> bool:
    """Give a quantised layer a weight without storage; tells whether the module is one. Needs a fake tensor mode.

    Args:
        tables: The code tables of this model, which its layers share; filled on the way.
    """
    if isinstance(module, bnb.nn.Linear4bit):
        module.__class__ = Linear4bit
        module._parameters["weight"] = _packed(module, tables)
        return True
    if isinstance(module, bnb.nn.Linear8bitLt):
        module.__class__ = Linear8bit
        weight = torch.empty(module.out_features, module.in_features, dtype=torch.int8)
        module.state.CB, module.state.SCB = weight, torch.empty(module.out_features)
        module.state.has_fp16_weights = False
        parameter = _parameter(weight, Int8Params)
        parameter.CB = parameter.SCB = None
        module._parameters["weight"] = parameter
        return True
    return False


def _packed(module: Any, tables: dict[str, torch.Tensor]) -> Any:
    numel = module.in_features * module.out_features
    blocks = -(-numel // BLOCK)
    for name, size in (("code", 16), ("nested", 256)):
        if name not in tables:
            tables[name] = torch.empty(size)
    old = module.weight
    nested = None
    if old.compress_statistics:
        nested = QuantState(
            torch.empty(-(-blocks // NESTED_BLOCK)), code=tables["nested"], blocksize=NESTED_BLOCK, dtype=torch.float32
        )
    parameter = _parameter(torch.empty((numel + 1) // 2, 1, dtype=torch.uint8), Params4bit)
    parameter.quant_state = QuantState(
        torch.empty(blocks, dtype=torch.uint8 if nested else torch.float32),
        shape=torch.Size((module.out_features, module.in_features)),
        code=tables["code"],
        blocksize=BLOCK,
        quant_type=old.quant_type,
        dtype=module.compute_dtype,
        offset=torch.empty(()) if nested else None,
        state2=nested,
    )
    parameter.compress_statistics, parameter.quant_type = old.compress_statistics, old.quant_type
    parameter.blocksize, parameter.quant_storage, parameter.bnb_quantized = BLOCK, torch.uint8, True
    return parameter


def _parameter(tensor: torch.Tensor, kind: type[FakeTensor]) -> Any:
    parameter: Any = nn.Parameter(tensor, requires_grad=False)
    parameter.__class__ = kind
    return parameter
