"""Where a result was computed: what may change its bytes, and is in no key.

Equal keys are equal work, and equal bytes where the environment is equal, too. Another version of
torch, another kind of processor, or a GPU adds up in another order.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch

__all__ = ["environment"]


@cache
def environment(device: str) -> dict[str, str]:
    """torch's version, and what it computes on (``device`` is cpu or cuda)."""
    processor = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return {"torch": torch.__version__, "device": device, "processor": processor}


def _processor() -> str:
    """The model of the CPU and what torch's kernels use of it."""
    kernels = torch.backends.cpu.get_cpu_capability()
    return f"{_model() or platform.machine()} ({kernels})"


def _model() -> str:
    """As Linux says it; empty elsewhere, and where it has no name (ARM)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    names = (line.partition(":")[2] for line in lines if line.startswith("model name"))
    return " ".join(next(names, "").split())
