"""Folding a trained adapter into its base: a plain Hugging Face model folder that needs neither PEFT nor autopeft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from autopeft.errors import RequestError
from autopeft.methods import METHODS
from autopeft.records import AdapterPlan, BaseFormat
from autopeft.trial.adapters import Resident, is_peft, load_base_of, read_about, unwrap
from autopeft.trial.compose import load_parts
from autopeft.trial.model import checkpoint_bits, head_of, load_config, load_tokenizer


def merge_adapter(folder: Path, out: Path, *, device: str = "cpu") -> tuple[str, ...]:
    """Fold the adapter of a folder into a base of 16 or 32 bits, and save that with the tokenizer.

    Returns:
        What is to be said of the result.

    Raises:
        RequestError: If such an adapter cannot be folded in, or `out` is not empty.
        SourceError: If the folder holds no adapter, or its base cannot be read.
    """
    about, plan, source = read_about(folder)
    if reason := why_unmergeable(plan):
        raise RequestError(f"merge: {METHODS[plan.method].title} cannot be merged: {reason}. Use autopeft.load")
    if out.exists() and any(out.iterdir()):
        raise RequestError(f"out: {out} is not empty; give a new folder")
    config = load_config(source)
    form = plan.base if plan.bits in (16, 32) else BaseFormat(checkpoint_bits(config))
    base = load_base_of(about, form, device=device)
    if is_peft(plan):
        model: Any = PeftModel.from_pretrained(base, str(folder)).merge_and_unload(safe_merge=True)
    else:
        load_parts(Resident(base).attach(plan, task=source.task, head=head_of(base, source.task)), folder)
        for module in base.modules():
            if isinstance(module, BaseTunerLayer):
                module.merge(safe_merge=True)
        unwrap(base)
        model = base
    model.config.use_cache = getattr(config, "use_cache", True)  # it is off only while training
    model.save_pretrained(str(out))
    load_tokenizer(source.path).save_pretrained(str(out))
    if plan.bits == form.bits:
        return ()
    return (
        f"the adapter was trained on a base of {plan.bits} bits and is merged into one of {form.bits}: "
        "what it learned of the rounding is lost, so that its quality should be measured again",
    )


def why_unmergeable(plan: AdapterPlan) -> str:
    """Say why an adapter cannot be folded into the weights; "" if it can."""
    if not METHODS[plan.method].mergeable:
        return "it acts on what passes through the model, not on its weights"
    if any(part.get("new") for part in plan.configs):
        return "this architecture has no place for the biases that were added to it"
    return ""
