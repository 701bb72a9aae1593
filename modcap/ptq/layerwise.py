"""Layer-wise rounding: the integers by which a layer gives most nearly what it gave.

Rounding each weight to its nearest integer ignores that errors of the weights of a channel add up
in its output: a filter whose weights sum to 0 no longer does so, and passes a share of the mean of
its input. Here the integers of a channel minimise

    E |(w - q(w)) (x - E x)|^2 = (w - q(w))ᵀ C (w - q(w)),    C the covariance of the inputs x

by coordinate descent: each weight in turn takes the integer that is best given all others, until
none changes; what the mean of x makes of the rest goes into the bias (without one, C is the second
moment). Where a channel has few weights, several scales are compared. Nothing is learned in steps:
it takes the time of a few; straight-through rounding goes on from there, over whole groups.

The quadratic form is that of AdaRound (Nagel et al., 2020, eq. 20), OBQ and GPTQ (Frantar et al.,
2022, 2023); coordinate descent on it is that of CDQuant (Nair and Suggala, 2024).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn

from modcap.graph.forward import Passes
from modcap.ptq.layer_inputs import Moments, measure_inputs
from modcap.quantization.affine import levels, middle
from modcap.quantization.insert import layers_of
from modcap.quantization.layers import QuantLayer
from modcap.quantization.scale_search import ranges, scales

__all__ = ["round_layerwise"]

_FEW = 128  # weights of a channel for which several scales are compared
_CANDIDATES = slice(0, 60, 5)  # of the scales that the search has
_SWEEPS = 12  # over all weights, at most


@torch.no_grad()
def round_layerwise(
    modules: Sequence[nn.Module], x: Tensor, passes: Passes | None = None
) -> dict[QuantLayer, Tensor]:
    """Makes the calibrated ``modules`` hard, one layer after another, each behind those before it.

    Args:
        modules: with quantizers, whose scales are searched.
        x: their input (N, ...), as the quantized modules before them give it.
        passes: how many images go through at once.

    Returns:
        The weight of each layer as it was, in full precision.
    """
    weights: dict[QuantLayer, Tensor] = {}
    for layer in layers_of(modules):
        weights[layer] = layer.weight.detach().clone()
        moments = measure_inputs(modules, layer, x, passes or Passes())
        if moments is None:
            layer.freeze()
        else:
            _round(layer, moments)
    return weights


@dataclass(frozen=True)
class _Blocks:
    """Weights (channels, fan-in) as the moments of inputs have them: by group of channels, and by
    parts of the weights of each."""

    groups: int
    parts: int

    def split(self, weights: Tensor) -> Tensor:
        """(groups * parts, channels of a group, n)."""
        channels, fan_in = weights.shape
        parts = weights.reshape(self.groups, -1, self.parts, fan_in // self.parts)
        return parts.transpose(1, 2).reshape(-1, channels // self.groups, parts.shape[-1])

    def joined(self, blocks: Tensor) -> Tensor:
        """The inverse of :meth:`split`."""
        parts = blocks.reshape(self.groups, self.parts, *blocks.shape[1:]).transpose(1, 2)
        return parts.reshape(self.groups * parts.shape[1], -1)

    def column(self, values: Tensor) -> Tensor:
        """``values`` of each channel, beside its blocks: (groups * parts, channels, 1)."""
        each = values.reshape(self.groups, 1, -1).expand(-1, self.parts, -1)
        return each.reshape(self.groups * self.parts, -1, 1)

    def of_channels(self, values: Tensor) -> Tensor:
        """Sums over parts of ``values`` (groups * parts, channels of a group): (channels,)."""
        return values.reshape(self.groups, self.parts, -1).sum(1).flatten()


def _round(layer: QuantLayer, moments: Moments) -> None:
    """Makes ``layer`` hard, with the best integers and scale of each channel."""
    bias = cast("Tensor | None", layer.layer.bias)
    rows = layer.weight.detach().flatten(1)
    groups = cast(int, getattr(layer.layer, "groups", 1))
    blocks = _Blocks(groups, len(moments.mean) // groups)
    form, weight = moments.form(centred=bias is not None), blocks.split(rows)
    least = torch.full_like(layer.scale, torch.inf)
    integers, scale, zero = rows, layer.scale, layer.zero_point
    for candidate, start in _scales(layer, rows):
        unit, origin = blocks.column(candidate), blocks.column(start)
        found = _descend(weight, unit, origin, levels(layer.bits), form)
        away = (found - origin) * unit - weight
        error = blocks.of_channels(((away @ form) * away).sum(2))
        better = error < least
        least = torch.where(better, error, least)
        integers = torch.where(better[:, None], blocks.joined(found), integers)
        scale, zero = torch.where(better, candidate, scale), torch.where(better, start, zero)
    if bias is not None:
        away = weight - blocks.split((integers - zero[:, None]) * scale[:, None])
        bias = bias.detach() + blocks.of_channels((away * moments.mean[:, None]).sum(2))
    layer.restore(integers.reshape(layer.weight.shape).to(torch.uint8), scale, zero, bias)


def _scales(layer: QuantLayer, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Scales to compare and their zero points, each (channels,): what the search found, and where
    channels have few weights, others."""
    yield layer.scale, layer.zero_point
    if rows.shape[1] > _FEW:
        return
    top = levels(layer.bits)
    low, width = ranges(rows, layer.bits, layer.grid)
    candidates = scales(width, top, layer.grid.power_of_two)
    few = _CANDIDATES if not layer.grid.power_of_two else slice(None)
    for share, scale in islice(candidates, few.start, few.stop, few.step):
        zero = torch.clamp(torch.round(-low * share / scale), 0, top)
        yield scale, torch.full_like(zero, middle(layer.bits)) if layer.grid.symmetric else zero


def _descend(weight: Tensor, scale: Tensor, zero: Tensor, top: int, form: Tensor) -> Tensor:
    """The integers of ``weight`` (blocks, channels, n), from the nearest ones, each in turn the
    best given the others, for the quadratic ``form`` (blocks, n, n)."""
    integers = torch.clamp(torch.round(weight / scale + zero), 0, top)
    slope = ((integers - zero) * scale - weight) @ form
    curvature = form.diagonal(dim1=1, dim2=2)
    for _ in range(_SWEEPS):
        moved = False
        for place in range(weight.shape[2]):
            old = integers[:, :, place, None]
            down = slope[:, :, place, None] / curvature[:, None, place, None]
            new = torch.clamp(torch.round(old - down / scale), 0, top)
            step = (new - old) * scale
            if bool(step.any()):
                moved = True
                integers[:, :, place, None] = new
                slope += step * form[:, None, place]
        if not moved:
            break
    return integers
