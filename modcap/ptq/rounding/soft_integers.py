"""The variables of soft rounding, which lie between two integers until the end."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modcap.quantization.affine import levels
from modcap.quantization.fake_quantize import GAMMA, ZETA, SoftRound
from modcap.quantization.layers import LearnedIntegers, QuantLayer

__all__ = ["SoftIntegers"]


class SoftIntegers(LearnedIntegers):
    """floor(w / s) + z + h(V), with h(V) in [0, 1] (AdaRound, eq. 22 and 23).

    Attributes:
        beta: exponent of the regulariser in the next forward pass; None leaves it out.
        penalty: sum of 1 - |2 h(V) - 1|^beta (eq. 24), of the last forward pass.
    """

    def __init__(self, layer: QuantLayer, weight: Tensor) -> None:
        super().__init__()
        zero = layer.per_channel_view(layer.zero_point)
        ratio = weight / layer.per_channel_view(layer.scale)
        self._floor = torch.floor(ratio) + zero
        share = ratio - torch.floor(ratio)  # which h(V) is at the start
        self.variable = nn.Parameter(-torch.log((ZETA - GAMMA) / (share - GAMMA) - 1))
        self._top = levels(layer.bits)
        self.beta: float | None = None
        self.penalty = torch.zeros(())

    def forward(self) -> Tensor:
        up, self.penalty = SoftRound.apply(self.variable, self.beta)  # type: ignore[no-untyped-call]
        return torch.clamp(self._floor + up, 0, self._top)

    def rounded(self) -> Tensor:
        return torch.clamp(self._floor + (self.variable.detach() >= 0), 0, self._top)
