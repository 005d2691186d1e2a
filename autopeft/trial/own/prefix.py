"""Prefixes at chosen layers: keys and values of their own that an attention reads beside those of the text.

PEFT's prefix (Li and Liang, arXiv:2101.00190) stands at every layer, as it comes as a filled cache; AutoPEFT
(arXiv:2301.12132) chooses the layers. Here the attention of a module is computed by a submodule of it, through the
interface that transformers has for that; the text keeps its positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from autopeft.trial.attention import attend_by

_STD = 0.02
"""Of the first keys and values, as embeddings begin in BERT and GPT-2."""


class Prefix(nn.Module):
    """`tokens` keys ``(heads, tokens, key_dim)`` and values ``(heads, tokens, value_dim)`` before those of the text."""

    def __init__(self, tokens: int, heads: int, key_dim: int, value_dim: int, *, device: torch.device) -> None:
        super().__init__()
        self.size = tokens
        self.key = nn.Parameter(torch.randn(heads, tokens, key_dim, device=device) * _STD)
        self.value = nn.Parameter(torch.randn(heads, tokens, value_dim, device=device) * _STD)

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        is_causal: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Compute the attention to the prefix and to the text; every token sees all of the prefix."""
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if attention_mask is None and causal and query.shape[2] > 1:
            shape = query.shape[2], key.shape[2]
            attention_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()[None, None]
        if attention_mask is not None:
            seen = attention_mask.new_ones if attention_mask.dtype == torch.bool else attention_mask.new_zeros
            attention_mask = torch.cat([seen((*attention_mask.shape[:-1], self.size)), attention_mask], dim=-1)
        key = torch.cat([self.key.to(key.dtype).expand(key.shape[0], -1, -1, -1), key], dim=2)
        value = torch.cat([self.value.to(value.dtype).expand(value.shape[0], -1, -1, -1), value], dim=2)
        return sdpa_attention_forward(module, query, key, value, attention_mask, is_causal=False, **kwargs)


def attach_prefixes(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Put a prefix at every attention of a configuration.

    Args:
        config: `sites`: (module, tokens, heads, width of a key, width of a value).
    """
    for name, tokens, heads, key_dim, value_dim in config["sites"]:
        module = model.get_submodule(name)
        attend_by(module, Prefix(tokens, heads, key_dim, value_dim, device=next(module.parameters()).device))
