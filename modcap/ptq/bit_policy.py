"""Which layer gets how many bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from modcap.quantization.bits import Bits

__all__ = ["BitPolicy"]


class _Chain(Protocol):
    """A partition, a network or an outline."""

    @property
    def layers(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class BitPolicy:
    """One width for weights and one for activations, and one for the first and the last layer.

    Jobs and artifacts carry the bits of each layer, so another policy changes :meth:`resolve` and
    :attr:`label` alone.
    """

    weights: int
    activations: int
    first_last: int

    def resolve(self, modules: _Chain) -> list[list[Bits]]:
        """The bits of each weight layer of each module."""
        usual = Bits(self.weights, self.activations)
        bits = [[usual] * count for count in modules.layers]
        bits[0][0] = bits[-1][-1] = Bits(self.first_last, self.first_last)
        return bits

    @property
    def label(self) -> str:
        """Such as ``W4A8``."""
        return f"W{self.weights}A{self.activations}"
