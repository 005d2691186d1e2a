"""Folding a trained adapter into its base: a plain Hugging Face model folder that needs neither PEFT nor autopeft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper

from autopeft.candidates import BaseFormat
from autopeft.errors import RequestError
from autopeft.methods import METHODS
from autopeft.methods.merging import why_unmergeable
from autopeft.trial.adapters import is_peft, read_about, unwrap
from autopeft.trial.compose import attach_parts, load_parts
from autopeft.trial.model import load_base, load_config, load_tokenizer
from autopeft.trial.reading import checkpoint_bits, head_of


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
    base = load_base(source, form, device=device, seed=about["head_seed"])
    if is_peft(plan):
        adapted = PeftModel.from_pretrained(base, str(folder))
        heads = {
            name: module.modules_to_save["default"].state_dict()
            for name, module in base.named_modules()
            if isinstance(module, ModulesToSaveWrapper)
        }
        model: Any = adapted.merge_and_unload(safe_merge=True)
        unwrap(model)  # a head that was trained beside the norms is still wrapped, and the old one inside
        for name, weights in heads.items():
            model.get_submodule(name).load_state_dict(weights)
    else:
        load_parts(attach_parts(base, plan, task=source.task, head=head_of(base, source.task)), folder)
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
