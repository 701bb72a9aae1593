"""Recipes by name."""

from __future__ import annotations

from modcap.ptq.methods import Rtn
from modcap.ptq.rounding import SoftRounding, StraightThroughRounding
from modcap.ptq.settings import Optimiser, RoundingStart
from modcap.recipe.recipe import Recipe, Schedule

__all__ = ["PRESETS"]

PRESETS: dict[str, Recipe] = {
    "paper": Recipe(optimiser=Optimiser(rounding=SoftRounding(regulariser=None))),
    "quick": Recipe(
        schedule=Schedule.WAVES,
        optimiser=Optimiser(
            iterations=100,
            rounding=StraightThroughRounding(rate=1e-1),
            scale_rate=1e-3,
            relative_scale_rate=True,
            weight_scale_rate=1e-3,
            bias_rate=1e-3,
        ),
    ),
    "fast": Recipe(method=Rtn(), rounding_start=RoundingStart.LAYER_WISE, correction=True),
}
"""``paper``: the published experiments, with the regulariser that was published for such networks.
``quick``: about a fiftieth of their time. ``fast``: no steps, in the time of some passes over the
calibration images."""
