"""Straight-through rounding: weights move, and are rounded in every step.

Gradients pass through the rounding as if it were the identity (Bengio et al., 2013, arXiv
1308.3432; EfficientQAT, Chen et al., 2024, trains blocks of language models like this).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from modcap.ptq.rounding.rounding import Rounding
from modcap.quantization.affine import levels
from modcap.quantization.fake_quantize import StraightThroughRound
from modcap.quantization.layers import LearnedIntegers, QuantLayer

__all__ = ["MovingIntegers", "StraightThroughRounding"]

_NEARLY_HALF = 0.49  # as far from an integer as a number may be that rounds to it
_MANY_WEIGHTS = 256  # of a channel; where there are fewer, each weighs more, and moves more slowly


class MovingIntegers(LearnedIntegers):
    """A weight in units of the distance between integers, from where the layer's integers are: as
    close to the full-precision weight as it rounds to what they are."""

    def __init__(self, layer: QuantLayer, weight: Tensor) -> None:
        super().__init__()
        if layer.integers is None:
            layer.freeze()
        assert layer.integers is not None
        scale, zero = (layer.per_channel_view(x) for x in (layer.scale, layer.zero_point))
        away = torch.clamp(weight / scale + zero - layer.integers, -_NEARLY_HALF, _NEARLY_HALF)
        self.variable = nn.Parameter(layer.integers + away)
        self._top = levels(layer.bits)

    def forward(self) -> Tensor:
        q: Tensor = StraightThroughRound.apply(self.variable, self._top)  # type: ignore[no-untyped-call]
        return q

    def rounded(self) -> Tensor:
        return torch.clamp(torch.round(self.variable.detach()), 0, self._top)


class StraightThroughRounding(Rounding):
    """To any integer; the learning rate falls to 0 by a cosine."""

    name: Literal["straight-through"] = "straight-through"
    rate: float = Field(
        1e-1,
        gt=0,
        description="learning rate of weights, in distances of integers; in channels of less than "
        "256 weights slower in proportion",
    )

    def start(self, layer: QuantLayer, weight: Tensor) -> MovingIntegers:
        return MovingIntegers(layer, weight)

    def learning_rate(self, layer: QuantLayer) -> float:
        return self.rate * min(1.0, layer.fan_in / _MANY_WEIGHTS)

    @property
    def decays(self) -> bool:
        return True
