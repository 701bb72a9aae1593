"""Straight-through rounding: weights move, and are rounded in every step.

Gradients pass through the rounding as if it were the identity (Bengio et al., 2013, arXiv
1308.3432; EfficientQAT, Chen et al., 2024, trains blocks of language models like this).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from modcap.ptq.rounding.rounding import Rounding

if TYPE_CHECKING:
    from torch import Tensor

    from modcap.ptq.rounding.moving_integers import MovingIntegers
    from modcap.quantization.layers import QuantLayer

__all__ = ["StraightThroughRounding"]

_MANY_WEIGHTS = 256  # of a channel; where there are fewer, each weighs more, and moves more slowly


class StraightThroughRounding(Rounding):
    """To any integer; the learning rate falls to 0 by a cosine."""

    starts_anywhere: ClassVar[bool] = True

    name: Literal["straight-through"] = "straight-through"
    rate: float = Field(
        1e-1,
        gt=0,
        description="learning rate of weights, in distances of integers; in channels of less than "
        "256 weights slower in proportion",
    )

    def start(self, layer: QuantLayer, weight: Tensor) -> MovingIntegers:
        from modcap.ptq.rounding.moving_integers import MovingIntegers

        return MovingIntegers(layer, weight)

    def learning_rate(self, layer: QuantLayer) -> float:
        return self.rate * min(1.0, layer.fan_in / _MANY_WEIGHTS)

    @property
    def decays(self) -> bool:
        return True
