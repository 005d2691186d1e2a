"""What a model is made of, read off the model itself: built without weights, so that nothing is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from autopeft.anatomy import Anatomy, Attention, Bias, Block, Norm, PromptShape, Task, Vocabulary
from autopeft.layers import describe_linears, number_layers, place_of
from autopeft.trial.attention import attend_by, can_be_given_keys
from autopeft.trial.model import AUTO_CLASSES, ModelSource, load_config


def read_anatomy(source: ModelSource) -> Anatomy:
    """Read what a model is made of: built on the meta device, so no weight is loaded.

    Raises:
        SourceError: If the model cannot be built.
    """
    config = load_config(source)
    with torch.device("meta"):
        model = AUTO_CLASSES[source.task].from_config(config)
    head = head_of(model, source.task)
    shapes, norms, biases = [], [], []
    for name, module in model.named_modules():
        if name.partition(".")[0] in head:
            continue
        if (shape := linear_shape(module)) is not None:
            shapes.append((name, *shape))
        elif is_norm(module):
            norms.append((name, sum(p.numel() for p in module.parameters(recurse=False))))
        else:
            continue
        if (bias := module._parameters.get("bias")) is not None:
            biases.append((name, bias.numel()))
    linears = tuple(
        replace(
            linear,
            bias=module.bias is not None,
            transposed=isinstance(module, Conv1D),
            plain=type(module) is nn.Linear,
        )
        for linear in describe_linears(shapes)
        if (module := model.get_submodule(linear.name))
    )
    layers = number_layers(place for linear in linears if (place := place_of(linear.name)) is not None)
    kinds = {linear.name: linear.kind for linear in linears} | {name: "norm" for name, _ in norms}
    in_blocks = dict.fromkeys(layers, 0)
    for name, parameter in model.named_parameters():
        if (place := place_of(name)) and (place.stack, place.index) in in_blocks:
            in_blocks[place.stack, place.index] += parameter.numel()
    return Anatomy(
        model_type=config.model_type,
        task=source.task,
        base_params=sum(p.numel() for p in model.parameters()) - sum(head.values()),
        n_layers=1 + max((linear.layer for linear in linears), default=-1),
        linears=linears,
        norms=tuple(Norm(name, _layer(name, layers), params) for name, params in norms),
        prompt=_prompt_shape(model),
        head=head,
        dtype_bits=checkpoint_bits(config),
        vocabulary=_vocabulary(model),
        # A classifier's pooler sees one token of a row.
        outer_linear=0 if head else sum(i * o for name, i, o in shapes if place_of(name) is None),
        biases=tuple(
            Bias(f"{name}.bias", kinds.get(name, name.rpartition(".")[2]), _layer(name, layers), params)
            for name, params in biases
        ),
        blocks=tuple(
            Block(f"{stack}.{index}", layers[stack, index], params) for (stack, index), params in in_blocks.items()
        ),
        attentions=_attentions(model, layers),  # last, for it changes the model
    )


def checkpoint_bits(config: Any) -> int:
    """Give the bits of a parameter in the checkpoint of a configuration."""
    return 16 if config.dtype in (torch.float16, torch.bfloat16) else 32


def _layer(name: str, layers: Mapping[tuple[str, int], int]) -> int | None:
    place = place_of(name)
    return None if place is None else layers.get((place.stack, place.index))


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Give (fan in, fan out) of a linear; GPT-2's Conv1D is one with its weight transposed."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return None


def is_norm(module: nn.Module) -> bool:
    """Tell a normalisation layer: LayerNorm, or any module of its own with "norm" in its class and a weight vector."""
    if isinstance(module, nn.LayerNorm):
        return True
    weight = module._parameters.get("weight")
    return "norm" in type(module).__name__.lower() and weight is not None and weight.dim() == 1


def head_of(model: Any, task: Task) -> dict[str, int]:
    """Give the modules of a new task head: what stands beside the pretrained model, and is trained whole."""
    if task != "text-classification":
        return {}
    return {
        name: sum(p.numel() for p in child.parameters())
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    }


def _vocabulary(model: Any) -> Vocabulary:
    """Find the input embedding, and what shares its weight."""
    embedding = model.get_input_embeddings()
    sharing = {n: m for n, m in model.named_modules() if m._parameters.get("weight") is embedding.weight}
    others = {name: module for name, module in sharing.items() if module is not embedding}
    return Vocabulary(
        embedding=next(name for name, module in sharing.items() if module is embedding),
        tied=tuple(name for name, module in others.items() if linear_shape(module) is not None),
        copies=tuple(name for name, module in others.items() if linear_shape(module) is None),
    )


class _Watch(nn.Module):
    """Notes the shapes of the keys and values of an attention, and computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.shape: tuple[int, int, int] | None = None

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: object, **kwargs: Any
    ) -> tuple[Tensor, None]:
        if kwargs.get("position_bias") is None:
            self.shape = key.shape[1], key.shape[3], value.shape[3]
        # As sdpa gives it: (rows, tokens, heads, width).
        return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None


def _attentions(model: Any, layers: Mapping[tuple[str, int], int]) -> tuple[Attention, ...]:
    """Find the attentions of one stack that go through transformers' interface, by a forward pass without numbers."""
    if model.config.is_encoder_decoder:
        return ()
    watches: dict[str, _Watch] = {}
    for name, module in list(model.named_modules()):
        if _layer(name, layers) is not None and can_be_given_keys(module):
            attend_by(module, watches.setdefault(name, _Watch()))
    tokens = torch.ones((1, 2), dtype=torch.long, device="meta")
    # To make a mask some models look at numbers; others take none that is made.
    for masks in ({"attention_mask": torch.ones((1, 1, 2, 2), dtype=torch.bool, device="meta")}, {}):
        # Without numbers experts cannot be chosen either; what lies above them is alike.
        with suppress(RuntimeError, TypeError, ValueError, LookupError), torch.no_grad():
            model(input_ids=tokens, use_cache=False, **masks)
        if any(watch.shape for watch in watches.values()):
            break
    shapes = {_make(model.get_submodule(name)): watch.shape for name, watch in watches.items() if watch.shape}
    return tuple(
        Attention(name, layer, *shapes[make])
        for name in watches
        if (make := _make(model.get_submodule(name))) in shapes and (layer := _layer(name, layers)) is not None
    )


def _make(module: nn.Module) -> tuple[Any, ...]:
    """Give what modules have in common that compute alike."""
    return type(module), *(linear_shape(part) for part in module.modules())


def _prompt_shape(model: Any) -> PromptShape:
    """Read the shape of a prompt off the model, and that of a prefix as PEFT does, off the configuration."""
    from peft import PrefixTuningConfig
    from peft.utils import _prepare_prompt_learning_config

    token_dim = model.get_input_embeddings().weight.shape[-1]
    none = PromptShape(token_dim, layers=0, prefix_dim=0)
    takers = (model, getattr(model, model.base_model_prefix, model))
    if not any("past_key_values" in inspect.signature(taker.forward).parameters for taker in takers):
        return none
    try:
        config = PrefixTuningConfig(num_virtual_tokens=1, task_type="CAUSAL_LM")
        prefix = _prepare_prompt_learning_config(config, model.config)
    except ValueError:  # it knows none of the names by which this model goes
        return none
    return PromptShape(token_dim, prefix.num_layers, prefix.token_dim)
