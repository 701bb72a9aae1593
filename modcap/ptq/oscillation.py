"""Oscillation of the loss over depth, measured alike for all methods (DESIGN.md)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modcap.graph.forward import BATCH, run_batched
from modcap.ptq.relative_error import RelativeError

__all__ = ["losses", "oscillation"]


@torch.no_grad()
def losses(
    full: Sequence[nn.Module], quantized: Sequence[nn.Module], x: Tensor, images: int = BATCH
) -> list[float]:
    """Loss of each module's output with everything up to it quantized, over its FP energy.

    Args:
        full: the full-precision modules of a network, in order.
        quantized: the same, quantized.
        x: (N, C, H, W) input images.
        images: that go through the network at once.

    Returns:
        ||y_q - y||^2 / ||y||^2 for each module.
    """
    errors = [RelativeError() for _ in full]
    for y in x.split(images):
        y_quantized = y
        for module, quantized_module, error in zip(full, quantized, errors, strict=True):
            y, y_quantized = run_batched([module], y), run_batched([quantized_module], y_quantized)
            error.add(y_quantized, y)
    return [error.value for error in errors]


def oscillation(values: Sequence[float]) -> float:
    """Mean absolute difference of adjacent losses over the mean loss; 0 for a flat curve."""
    if len(values) < 2 or not sum(values):
        return 0.0
    steps = [abs(a - b) for a, b in itertools.pairwise(values)]
    return (sum(steps) / len(steps)) / (sum(values) / len(values))
