"""Attach an adapter to a resident base, make sure it is the one intended, and take it off without a trace."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model
from peft.tuners.adaption_prompt.layer import AdaptedAttention, AdaptedAttentionGPT
from peft.tuners.shira import layer as shira_layer
from peft.tuners.supertuning import layer as supertuning_layer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from autopeft.candidates import AdapterPlan
from autopeft.errors import SourceError, TrialError
from autopeft.trial.allocation import hold_ranks
from autopeft.trial.compose import attach_parts, base_of, config_of, load_parts, save_parts, trained_tensors
from autopeft.trial.initial import (
    begin_with_inputs,
    begin_with_residuals,
    changed_by,
    factors_of,
    layers_of,
    restore,
    rewrites_base,
    settle,
)
from autopeft.trial.model import ModelSource, load_base
from autopeft.trial.modules import Parts
from autopeft.trial.own import Bottleneck, Prefix
from autopeft.trial.reading import head_of

# PEFT wraps norms like any module and says so each time, as it says what a method does to sizes that do not fit or
# to a machine without a compiler, all of which is counted here; transformers deprecates a flag that PEFT still reads.
warnings.filterwarnings("ignore", message="Unsupported layer type")
warnings.filterwarnings("ignore", message="You are trying to modify a model with PEFT for a second time")
warnings.filterwarnings("ignore", message="Invalid `oft_block_size`")
warnings.filterwarnings("ignore", message="Detected that the base layer has no bias term")
warnings.filterwarnings("ignore", message="Failed to load the CUDA extension")
warnings.filterwarnings("ignore", message="Setting boft_n_butterfly_factor")
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")

ABOUT = "autopeft.json"
"""File beside the adapter that says on which base it goes."""


def peft_config(plan: AdapterPlan, *, task: str, head: Mapping[str, int], base: str = "") -> Any:
    """Make PEFT's configuration of a plan; a new task head is trained and saved with the adapter."""
    return config_of(plan.config, task=task, head=head, base=base)


def attached(model: Any, plan: AdapterPlan, *, task: str, head: Mapping[str, int], base: str = "") -> Any:
    """Attach the adapter of a plan to a model, with weights or without; gives the model to call."""
    if is_peft(plan):
        adapted = get_peft_model(model, peft_config(plan, task=task, head=head, base=base))
        hold_ranks(adapted)
        return adapted
    return attach_parts(model, plan, task=task, head=head)


class Resident:
    """A base model that stays in memory while adapters come and go.

    PEFT's own `unload` leaves trained heads behind and fails on quantised bases; here everything that an adapter
    changed is put back as it was.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._loaded = [_Loaded(module) for module in model.modules()]
        self._grads = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._attributes = set(vars(model))
        self._config_fields = dict(vars(model.config))
        self._copies: dict[str, Tensor] = {}
        self._beginnings: dict[str, tuple[Tensor, Tensor]] = {}

    def attach(
        self,
        plan: AdapterPlan,
        *,
        task: str,
        head: Mapping[str, int],
        base: str = "",
        sample: Sequence[Mapping[str, Tensor]] = (),
        dense: Callable[[], nn.Module] | None = None,
    ) -> Any:
        """Attach the adapter of a plan and make sure that it is what was planned; gives the model to call.

        Args:
            sample: Batches to train on, for an adapter that begins with what it sees in them.
            dense: Loads the base as its checkpoint has it, for an adapter that begins with what quantisation took.

        Raises:
            TrialError: If the realised adapter differs in a module, a rank or a parameter from the plan.
        """
        self._copies = changed_by(plan, self.model)
        adapted = attached(self.model, plan, task=task, head=head, base=base)
        check_realised(adapted, plan, head_params=sum(head.values()))
        if rewrites_base(plan):
            self._beginnings = {name: factors_of(layer) for name, layer in layers_of(adapted)}
        if plan.config.get("init_lora_weights") == "eva":
            begin_with_inputs(adapted, sample)
        if plan.config.get("init_lora_weights") == "loftq":
            assert dense is not None, "loftq needs the base as it was"
            begin_with_residuals(adapted, dense())
        if plan.recipe.gradient_checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
            # Only reentrant checkpoints need inputs with gradients, and the layers below the lowest adapter do not.
            self.model.disable_input_require_grads()
        return adapted

    def settle(self, adapted: Any) -> None:
        """Turn a trained adapter into the one that is judged and saved: one that goes on the base as it was."""
        if self._beginnings:
            restore(self.model, self._copies)
            settle(adapted, self._beginnings)

    def detach(self) -> None:
        """Take the adapter off, whatever state it is in; the base is bit for bit what it was."""
        for loaded in self._loaded:
            loaded.put_back()
        for remembers in (shira_layer, supertuning_layer):
            # It keeps every layer that it was ever asked about, with all its tensors.
            remembers._warn_once_about_module_hooks.cache_clear()
        restore(self.model, self._copies)
        self._copies, self._beginnings = {}, {}
        if self.model.is_gradient_checkpointing:
            self.model.activation_checkpointing_disable()
        for attribute in set(vars(self.model)) - self._attributes:
            delattr(self.model, attribute)
        if "_hf_peft_config_loaded" in vars(self.model):
            self.model._hf_peft_config_loaded = False
        for field in set(vars(self.model.config)) - set(self._config_fields):
            delattr(self.model.config, field)
        for parameter, trained in self._grads:
            parameter.requires_grad_(trained)
            parameter.grad = None


class _Loaded:
    """What a module of the base was made of when it was loaded; what wrapped a module in it is no longer its child."""

    __slots__ = ("_config", "_module", "_parts", "_training")

    def __init__(self, module: nn.Module) -> None:
        self._module, self._training, self._config = module, module.training, vars(module).get("config")
        self._parts = Parts.of(module)

    def put_back(self) -> None:
        """Make it of that again."""
        module = self._module
        self._parts.put_in(module)
        if vars(module).get("config") is not self._config:
            vars(module)["config"] = self._config
        if module.training != self._training:
            module.training = self._training


def unwrap(model: Any) -> None:
    """Put every module that PEFT wrapped back in the place of its wrapper, whatever its weights are by now."""
    # The innermost module is reached through get_base_layer, so only the outermost wrapper is replaced.
    for name, module in list(model.named_modules()):
        inner = None
        if isinstance(module, AuxiliaryTrainingWrapper):
            inner = module.original_module
        elif isinstance(module, AdaptedAttention | AdaptedAttentionGPT):
            inner = module.model
        elif isinstance(module, BaseTunerLayer) and isinstance(module, nn.Module) and hasattr(module, "base_layer"):
            inner = BaseTunerLayer.get_base_layer(module)
        if inner is None or not name:
            continue
        parent, _, leaf = name.rpartition(".")
        owner = model.get_submodule(parent) if parent else model
        if not isinstance(owner, BaseTunerLayer | AuxiliaryTrainingWrapper):
            setattr(owner, leaf, inner)


def is_peft(plan: AdapterPlan) -> bool:
    """Tell an adapter that PEFT makes alone, and that is saved in its format."""
    return "peft_type" in plan.config


_SIZES = (
    "oft_block_size",
    "boft_block_size",
    "block_size",
    "fourierft_n_frequency",
    "waveft_n_frequency",
    "hra_r",
    "token_indices",
    "miss_r",
    "deft_r",
    "effective_rank",
    "r",
)
"""Where PEFT's layers say how large they are; OFT's `r` is how many blocks it has, so the blocks' size comes first."""


def realised_sizes(adapted: Any) -> dict[str, int]:
    """Read off a real model what its adapter is: module name -> rank (or block, or coefficients), or 1 for a vector."""
    sizes = {}
    for name, module in base_of(adapted).named_modules():
        if isinstance(module, BaseTunerLayer):
            said = (getattr(module, field, None) for field in _SIZES)
            size = next((s["default"] for s in said if isinstance(s, dict) and "default" in s), 1)
            sizes[name] = len(size) if isinstance(size, list) else int(size)
        elif isinstance(module, AdaptedAttention | AdaptedAttentionGPT):
            sizes[name] = module.adapter_len
        elif isinstance(module, Bottleneck | Prefix):
            sizes[name] = module.size
    return sizes


def check_realised(adapted: Any, plan: AdapterPlan, *, head_params: int) -> None:
    """Compare the real adapter with the plan; PEFT ignores names that match nothing without a word.

    Raises:
        TrialError: Naming the first differences.
    """
    # A parameter of the base itself is planned by its name; one that is trained unplanned is seen in the count.
    sizes = realised_sizes(adapted) | {n: 1 for n in trained_tensors(base_of(adapted)) if n in plan.sizes}
    differing = [n for n in {**plan.sizes, **sizes} if plan.sizes.get(n) != sizes.get(n)]
    if differing:
        first = ", ".join(f"{n}: planned {plan.sizes.get(n)}, is {sizes.get(n)}" for n in differing[:3])
        raise TrialError(f"the adapter is not the one planned in {len(differing)} modules ({first})")
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    if trained != plan.adapter_params + head_params:
        raise TrialError(
            f"the adapter trains {trained:,} parameters; planned were {plan.adapter_params + head_params:,}, "
            f"{head_params:,} of them the head's"
        )


def read_about(folder: Path) -> tuple[dict[str, Any], AdapterPlan, ModelSource]:
    """Read what was written beside an adapter: all of it, and of that the plan and the base's source.

    Raises:
        SourceError: If the folder holds no adapter of ours.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return about, AdapterPlan.from_dict(about["plan"]), ModelSource.from_dict(about["source"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"adapter: {folder} holds no adapter that autopeft saved ({ABOUT}: {error!r})") from None


def load_adapter(folder: Path, *, device: str = "cpu") -> Any:
    """Load a saved adapter on its base, at the bits that it was trained on, ready for use.

    Raises:
        SourceError: If the folder holds no adapter of ours, or its base cannot be read.
    """
    about, plan, source = read_about(folder)
    base = load_base(source, plan.base, device=device, seed=about["head_seed"])  # the head that it was trained from
    if is_peft(plan):
        return PeftModel.from_pretrained(base, str(folder)).eval()
    adapted = attach_parts(base, plan, task=source.task, head=head_of(base, source.task))
    load_parts(adapted, folder)
    return adapted.requires_grad_(False).eval()


def save_adapter(adapted: Any, folder: Path, *, about: Mapping[str, Any]) -> int:
    """Save the adapter; what PEFT makes alone so that `PeftModel.from_pretrained` loads it; returns the bytes written.

    Args:
        about: What `load_adapter` has to know: the source's fields, the plan, the seed of the head.
    """
    if is_peft(AdapterPlan.from_dict(about["plan"])):
        # PEFT's model card is a form to be filled in, and takes it three times as long as all else that it saves.
        adapted.create_or_update_model_card = lambda folder: None
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
    else:
        save_parts(adapted, folder)
    (folder / ABOUT).write_text(json.dumps(about, ensure_ascii=False, indent=1), encoding="utf-8")
    return sum(path.stat().st_size for path in folder.iterdir())
