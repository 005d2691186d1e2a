"""Attention and dropout as CUDA and the CPU run them: what their fused kernels return and keep, on fake tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Sizes of the fused kernels: head widths that they align to, and the padding of a bias (attention.cpp, PyTorch 2.13).
_HEAD_ALIGNMENT = {2: 8, 4: 4}
_LARGEST_FLASH_HEAD = 256
_BIAS_ALIGNMENT = 16


def cuda_dropout(value: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """Drop as CUDA does: the kernel keeps a mask of booleans."""
    if p == 0.0 or not training:
        return value
    return torch.native_dropout(value, p, True)[0]


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turn a mask of booleans into one that is added to the scores."""
    if mask.dtype != torch.bool:
        return mask
    zero = torch.zeros((), dtype=dtype, device=mask.device)
    return torch.where(mask, zero, torch.full((), float("-inf"), dtype=dtype, device=mask.device))


def cuda_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Attend as CUDA does: the flash kernel without a mask, the memory-efficient one with, else plain products.

    Args:
        query: ``(batch, heads, length, width)``; `key` and `value` may have fewer heads with `enable_gqa`.
        attn_mask: Broadcasts to ``(batch, heads, length, key length)``.
    """
    width = query.shape[-1]
    half = query.dtype in (torch.float16, torch.bfloat16)
    aligned = width % _HEAD_ALIGNMENT.get(query.element_size(), 1) == 0 and value.shape[-1] == width
    if attn_mask is None and half and aligned and width <= _LARGEST_FLASH_HEAD:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    if not aligned:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if enable_gqa and key.shape[1] != query.shape[1]:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    bias = None
    if attn_mask is not None:
        bias = _additive(attn_mask, query.dtype)
        length = bias.shape[-1]
        if length % _BIAS_ALIGNMENT:
            bias = F.pad(bias, (0, -length % _BIAS_ALIGNMENT))[..., :length]
        bias = bias.expand(*query.shape[:3], length)
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    saves = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    return efficient(query, key, value, bias, saves, dropout_p, is_causal, scale=scale)[0]


def cpu_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Attend as the CPU does: its flash kernel where there is no dropout; a fake tensor would take plain products."""
    fused = dropout_p == 0.0 and not enable_gqa and (attn_mask is None or not attn_mask.requires_grad)
    if not fused:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    bias = None if attn_mask is None else _additive(attn_mask, query.dtype)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(query, key, value, dropout_p, is_causal, attn_mask=bias, scale=scale)[0]
