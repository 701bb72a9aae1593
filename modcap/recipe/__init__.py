"""The recipe: all that decides the result of a quantization."""

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
    "Budget",
    "CapacityKind",
    "CapacityScale",
    "Device",
    "Homogeneity",
    "Recipe",
    "Schedule",
    "Selection",
]
