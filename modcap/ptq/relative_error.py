"""The relative error of an output, which tells how good a reconstruction is."""

from __future__ import annotations

from torch import Tensor

from modcap.graph.forward import BATCH

__all__ = ["relative_error"]


def relative_error(output: Tensor, target: Tensor) -> float:
    """||output - target||^2 / ||target||^2, over tensors (N, ...)."""
    away = energy = 0.0
    for y, wanted in zip(output.split(BATCH), target.split(BATCH), strict=True):
        exact = wanted.double()
        away += float((y.double() - exact).square().sum())
        energy += float(exact.square().sum())
    return away / max(energy, 1e-30)
