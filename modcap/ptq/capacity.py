"""Module capacity (ModCap): how much a quantized module can represent (MRECG, section 3).

Two measures. *Data-free*: the sum over the weight layers of a module of
``parameters * weight bits * alpha(stride)``. *Data-dependent*: the reconstruction error
``||f_q(x_q) - f(x)||^2`` on a calibration batch, where a larger error is a lower capacity.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn

from modcap.graph.nodes import weight_layers
from modcap.quantization.bits import Bits

__all__ = ["Signature", "data_dependent", "data_free", "differentials", "homogeneous", "signature"]


@dataclass(frozen=True)
class Signature:
    """The hyper-parameters that homogeneous modules share; kernels and channels may differ."""

    stride: int
    groups: tuple[str, ...]


def _layers(module: fx.GraphModule) -> list[nn.Module]:
    return [module.get_submodule(cast(str, node.target)) for node in weight_layers(module)]


def _stride(layer: nn.Module) -> int:
    return max(cast(tuple[int, ...], getattr(layer, "stride", (1,))))


def _group_kind(layer: nn.Module) -> str:
    groups = cast(int, getattr(layer, "groups", 1))
    if groups == 1:
        return "dense"
    return "depthwise" if groups == cast(int, layer.in_channels) else "grouped"


def signature(module: fx.GraphModule) -> Signature:
    """Largest stride and kinds of groups of the module's weight layers."""
    layers = _layers(module)
    stride = max(_stride(layer) for layer in layers)
    return Signature(stride, tuple(sorted({_group_kind(layer) for layer in layers})))


def homogeneous(modules: Sequence[fx.GraphModule]) -> list[bool]:
    """Of each boundary, whether the modules beside it have equal signatures."""
    return [a == b for a, b in itertools.pairwise(map(signature, modules))]


def data_free(module: fx.GraphModule, bits: Sequence[Bits], alpha: float) -> float:
    """Sum over weight layers of parameters * weight bits * alpha, alpha = 1 at stride 1.

    Unit: bits, weighted; weights that stay float have 32. ``alpha`` applies to layers of stride 2
    and more.
    """
    return math.fsum(
        cast(Tensor, layer.weight).numel() * width.size * (alpha if _stride(layer) > 1 else 1.0)
        for layer, width in zip(_layers(module), bits, strict=True)
    )


@torch.no_grad()
def data_dependent(quantized: Tensor, target: Tensor, images: int | None = None) -> float:
    """``-||f_q(x_q) - f(x)||_F^2 / N``: the negated squared error per image.

    Args:
        quantized: (N, ...) output of the quantized module behind the quantized prefix.
        target: (N, ...) output of the full-precision module.
        images: that are looked at together; None is all.
    """
    parts = zip(*(t.split(images or len(target)) for t in (quantized, target)), strict=True)
    return -sum(float((y - wanted).double().square().sum()) for y, wanted in parts) / len(target)


def differentials(capacities: Sequence[float]) -> list[float]:
    """(CM_i - CM_{i+1})^2 for each boundary between module i and i + 1 (MRECG, eq. 12)."""
    return [(a - b) ** 2 for a, b in itertools.pairwise(capacities)]
