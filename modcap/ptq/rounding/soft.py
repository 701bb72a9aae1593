"""Soft rounding: each weight up or down, by variables that lie between until the end.

The rounding of AdaRound (Nagel et al., 2020, arXiv 2004.10568, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast

from pydantic import Field

from modcap.ptq.rounding.rounding import Rounding

if TYPE_CHECKING:
    from torch import Tensor

    from modcap.ptq.rounding.soft_integers import SoftIntegers
    from modcap.quantization.layers import LearnedIntegers, QuantLayer

__all__ = ["SoftRounding"]

_PUBLISHED = 0.01  # weight of the regulariser (ResNet, RegNet)
_DEPTHWISE = 0.1  # of a network with depthwise convolutions (MobileNetV2)
_LARGE_DEPTHWISE = 0.2  # of one where these have kernels of more than 3 x 3 (MnasNet)


class SoftRounding(Rounding):
    """Up or down, with a regulariser that drives each variable to one of both."""

    name: Literal["soft"] = "soft"
    rate: float = Field(1e-3, gt=0, description="learning rate of rounding variables")
    decay: bool = Field(False, description="the learning rate falls to 0 by a cosine")
    regulariser: float | None = Field(
        _PUBLISHED,
        ge=0,
        description="weight of the regulariser; null is the one that was published for such "
        "networks: 0.1 with depthwise convolutions, as MobileNetV2, 0.2 if one of these is larger "
        "than 3 x 3, as in MnasNet, else 0.01",
    )
    warm_up: float = Field(0.2, ge=0, lt=1, description="fraction of steps without regulariser")
    beta_start: float = Field(20.0, gt=0, description="exponent of the regulariser, at its start")
    beta_end: float = Field(2.0, gt=0, description="exponent of the regulariser, at the end")

    def start(self, layer: QuantLayer, weight: Tensor) -> SoftIntegers:
        from modcap.ptq.rounding.soft_integers import SoftIntegers

        return SoftIntegers(layer, weight)

    def learning_rate(self, layer: QuantLayer) -> float:
        return self.rate

    @property
    def decays(self) -> bool:
        return self.decay

    def for_network(self, depthwise: int) -> SoftRounding:
        if self.regulariser is not None:
            return self
        published = _DEPTHWISE if depthwise <= 3 else _LARGE_DEPTHWISE
        return self.model_copy(update={"regulariser": published if depthwise else _PUBLISHED})

    @property
    def weight(self) -> float:
        """Of the regulariser."""
        return _PUBLISHED if self.regulariser is None else self.regulariser

    def beta(self, done: float) -> float | None:
        """The exponent of the regulariser, annealed by a cosine; None during the warm-up."""
        if done < self.warm_up or not self.weight:
            return None
        share = (done - self.warm_up) / (1 - self.warm_up)
        falling = 0.5 * (1 + math.cos(math.pi * share))
        return self.beta_end + (self.beta_start - self.beta_end) * falling

    def step(self, integers: Sequence[LearnedIntegers], done: float) -> None:
        beta = self.beta(done)
        for some in integers:
            cast("SoftIntegers", some).beta = beta

    def penalty(self, integers: Sequence[LearnedIntegers]) -> Tensor | None:
        import torch

        soft = [cast("SoftIntegers", some) for some in integers]
        if not soft or soft[0].beta is None:
            return None
        return self.weight * torch.stack([some.penalty for some in soft]).sum()
