"""The variables of straight-through rounding: weights that move from integer to integer."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from modcap.quantization.affine import levels
from modcap.quantization.fake_quantize import StraightThroughRound
from modcap.quantization.layers import LearnedIntegers, QuantLayer

__all__ = ["MovingIntegers"]

_NEARLY_HALF = 0.49  # as far from an integer as a number may be that rounds to it


class MovingIntegers(LearnedIntegers):
    """A weight in units of the distance between integers, from where the layer's integers are: as
    close to the full-precision weight as it rounds to what they are."""

    follows_scale: ClassVar[bool] = True

    def __init__(self, layer: QuantLayer, weight: Tensor) -> None:
        super().__init__()
        if layer.integers is None:
            layer.freeze()
        assert layer.integers is not None
        scale, zero = (layer.per_channel_view(x) for x in (layer.scale, layer.zero_point))
        away = torch.clamp(weight / scale + zero - layer.integers, -_NEARLY_HALF, _NEARLY_HALF)
        self.variable = nn.Parameter(layer.integers + away)
        self._zero, self._top = zero, levels(layer.bits)

    def forward(self) -> Tensor:
        q: Tensor = StraightThroughRound.apply(self._moved(), self._top)  # type: ignore[no-untyped-call]
        return q

    def rounded(self) -> Tensor:
        return torch.clamp(torch.round(self._moved().detach()), 0, self._top)

    def _moved(self) -> Tensor:
        if self.factor is None:
            return self.variable
        return (self.variable - self._zero) / self.factor + self._zero
