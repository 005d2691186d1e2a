"""What a result depends on beside its request: the versions of the packages, and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import psutil

from autopeft.units import show_bytes

_PACKAGES = ("autopeft", "torch", "transformers", "peft", "bitsandbytes", "optuna", "ray", "datasets", "numpy")


def versions() -> dict[str, str]:
    """Give the versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, str]:
    """Say what this machine is."""
    found = {"machine": f"{platform.system()} {platform.machine()}", "cores": str(os.cpu_count())}
    found["memory"] = show_bytes(psutil.virtual_memory().total)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x.partition(":")[2].strip() for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        found |= {"cpu": names[0]} if names else {}
    if "torch" in sys.modules:
        from autopeft.trial.device import gpu_names

        found |= {f"gpu {i}": name for i, name in enumerate(gpu_names())}
    return found
