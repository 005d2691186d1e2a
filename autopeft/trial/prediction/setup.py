"""How a training runs, as far as memory depends on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from autopeft.candidates import AdapterPlan, BaseFormat
from autopeft.trial.model import dtype_of
from autopeft.trial.prediction.allocator import BLOCK_BYTES
from autopeft.trial.prediction.kernels import Device
from autopeft.trial.train import CLIP_NORM

HALF = BaseFormat(16)


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """How a training runs; the defaults are those of `autopeft.trial.train`.

    Attributes:
        batch_size, length: Rows of a forward pass, and tokens of each.
        base: How the base is held.
        autocast: Whether a base of half precision trains under autocast, with what is trained in fp32.
        optimizer: A recipe's, or another that `optimizers.traced_optimizer` knows.
        accumulates: Whether a step has several forward and backward passes, whose gradients add up.
        packed: Whether short texts share a row.
        padded: Whether a batch has rows of different lengths, so that attention needs a mask.
        use_cache: Whether the model fills a cache of keys and values, as transformers does unless told otherwise.
        keeps_output: Whether the loop holds a forward pass's output until the next one's.
        empties_cache: Whether the allocator's cache is emptied before the step that is reported.
        earlier_length: Tokens of the batches before that step; None for as many as in it.
        clip_norm: Norm to which gradients are clipped; 0 for none.
        device: Whose kernels are counted, and whose allocator.
    """

    batch_size: int
    length: int
    base: BaseFormat = HALF
    autocast: bool = True
    optimizer: str = "adamw"
    accumulates: bool = False
    gradient_checkpointing: bool = False
    packed: bool = False
    padded: bool = True
    use_cache: bool = False
    keeps_output: bool = False
    empties_cache: bool = False
    earlier_length: int | None = None
    clip_norm: float = CLIP_NORM
    device: Device = "cuda"

    @classmethod
    def of(cls, plan: AdapterPlan, *, length: int, device: Device, padded: bool = True) -> TrainingSetup:
        """Give how autopeft trains a plan on rows of at most `length` tokens."""
        recipe = plan.recipe
        parts = recipe.gradient_accumulation_steps
        return cls(
            batch_size=-(-recipe.batch_size // parts),
            # Short texts that share a row fill it; else no row is longer than the longest.
            length=(recipe.max_length or length) if recipe.packing else min(recipe.max_length or length, length),
            base=plan.base,
            optimizer=recipe.optimizer,
            accumulates=parts > 1,
            gradient_checkpointing=recipe.gradient_checkpointing,
            packed=recipe.packing,
            padded=padded,
            device=device,
        )

    @property
    def base_dtype(self) -> torch.dtype:
        """The type of base weights that are not quantised."""
        return dtype_of(self.base, self.device)

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """What autocast computes in; None where there is none."""
        return self.base_dtype if self.autocast and self.base_dtype != torch.float32 else None

    @property
    def block_bytes(self) -> int:
        """What a storage's size is rounded to."""
        return BLOCK_BYTES if self.device == "cuda" else 1
