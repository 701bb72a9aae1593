"""The recipe: all that decides the result of a quantization."""

from modcap.recipe.bit_fields import Allocation
from modcap.recipe.presets import PRESETS
from modcap.recipe.recipe import (
    Budget,
    CapacityKind,
    CapacityScale,
    Device,
    Homogeneity,
    Recipe,
    Schedule,
    Selection,
)

__all__ = [
    "PRESETS",
    "Allocation",
    "Budget",
    "CapacityKind",
    "CapacityScale",
    "Device",
    "Homogeneity",
    "Recipe",
    "Schedule",
    "Selection",
]
