"""A submodule computes the attention of a module, through the interface that transformers has for kernels."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

READER = "prefix"
"""Name of the submodule."""
_INTERFACE = "autopeft"


def attend_by(module: nn.Module, reader: nn.Module) -> None:
    """Let `reader.attend` compute the attention of a module in place of PyTorch's; it becomes its submodule."""
    config: Any = copy.copy(module.config)
    config._attn_implementation = _INTERFACE
    module.config = config
    module.add_module(READER, reader)


def can_be_given_keys(module: nn.Module) -> bool:
    """Tell whether a module may compute an attention that could be computed by another."""
    config: Any = vars(module).get("config")
    return config is not None and config._attn_implementation == "sdpa" and not config.sub_configs


def _attend(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    reader: Any = module.get_submodule(READER)
    return reader.attend(module, *args, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(_INTERFACE, _attend)
