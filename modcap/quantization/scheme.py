"""The scheme: what is quantized, and which scales and zero points there may be.

Devices that compute in integers alone hold every value in integers, and some of them take no zero
points of weights, or no scales but powers of two.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from modcap.core.named import Frozen

__all__ = ["ANY", "USUAL", "Activations", "Grid", "Scales", "Scheme", "WeightRange"]


class Activations(str, Enum):
    """Which values are quantized: what weight layers read, or all that integer devices hold."""

    INPUTS = "inputs"
    ALL = "all"


class WeightRange(str, Enum):
    """Where the integers of weights begin: each channel has its zero point, or 0 is in the middle
    (the zero point is 2^(bits - 1))."""

    ASYMMETRIC = "asymmetric"
    SYMMETRIC = "symmetric"


class Scales(str, Enum):
    """Which scales there may be, of weights and of activations."""

    ANY = "any"
    POWER_OF_TWO = "power-of-two"


class Grid(NamedTuple):
    """Of one quantizer: whether its zero point lies in the middle, and its scale is a power of
    two."""

    symmetric: bool = False
    power_of_two: bool = False


ANY = Grid()
"""Any scale and any zero point."""


class Scheme(Frozen):
    """Of a whole network."""

    activations: Activations = Activations.INPUTS
    weights: WeightRange = WeightRange.ASYMMETRIC
    scales: Scales = Scales.ANY

    @property
    def of_all(self) -> bool:
        """Whether every value that an integer device holds is quantized, biases too."""
        return self.activations is Activations.ALL

    @property
    def weight_grid(self) -> Grid:
        symmetric = self.weights is WeightRange.SYMMETRIC
        return Grid(symmetric, self.scales is Scales.POWER_OF_TWO)

    @property
    def activation_grid(self) -> Grid:
        return Grid(power_of_two=self.scales is Scales.POWER_OF_TWO)


USUAL = Scheme()
"""What weight layers read, on any grid."""
