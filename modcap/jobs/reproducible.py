"""What torch must be told so that a GPU gives the same bytes twice."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["reproducible"]


@contextlib.contextmanager
def reproducible(device: str) -> Iterator[None]:
    """While it lasts, torch computes the same on ``device`` each time, if that is cuda: no kernel
    is chosen by how long it took, products are of full precision, and sums have one order. What has
    no such kernel warns. Afterwards all is as it was.
    """
    if device != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    settings = _settings()
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in settings]
    mode = torch.get_deterministic_debug_mode()
    try:
        for owner, name, value in settings:
            setattr(owner, name, value)
        torch.use_deterministic_algorithms(True, warn_only=True)
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        for owner, name, value in before:
            setattr(owner, name, value)


def _settings() -> list[tuple[Any, str, Any]]:
    backends: Any = torch.backends
    return [
        (backends.cudnn, "benchmark", False),
        (backends.cudnn, "deterministic", True),
        (torch.utils.deterministic, "fill_uninitialized_memory", False),  # nothing reads it
        *_full_precision(backends),
    ]


def _full_precision(backends: Any) -> list[tuple[Any, str, Any]]:
    """Products in float32, by the names that the caller uses: torch refuses a mixture."""
    owners = backends.cuda.matmul, backends.cudnn
    try:
        return [(owner, "allow_tf32", False) for owner in owners if owner.allow_tf32 in (0, 1)]
    except RuntimeError:
        return [(backends.cudnn, "fp32_precision", "ieee")]  # of all that CUDA computes
