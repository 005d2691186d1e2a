"""What torch says of this machine's devices, and whether quantised layers work on them."""

from __future__ import annotations

import logging

import torch

from autopeft.units import show_bytes

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a kernel that it can do without


def cuda_available() -> bool:
    """Tell whether there is a CUDA device."""
    return bool(torch.cuda.is_available())


def gpu_names() -> list[str]:
    """Name the CUDA devices, in their order."""
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def describe_device() -> str:
    """Say on what trials would run."""
    if cuda_available():
        free, total = torch.cuda.mem_get_info()
        return f"CUDA, {show_bytes(free)} of {show_bytes(total)} free"
    return "CPU: small models only; quantised bases train 3-4 times slower than bf16 here"


def quantised_gradient_is_finite() -> bool:
    """Run one nf4 layer forward and backward: a broken bitsandbytes shows only when it is used."""
    import bitsandbytes

    device = "cuda" if cuda_available() else "cpu"
    layer = bitsandbytes.nn.Linear4bit(64, 64, quant_type="nf4", compute_dtype=torch.float32).to(device)
    layer.support_avx512bf16_for_cpu = False
    x = torch.ones(2, 64, device=device, requires_grad=True)
    layer(x).sum().backward()
    return x.grad is not None and bool(torch.isfinite(x.grad).all())
