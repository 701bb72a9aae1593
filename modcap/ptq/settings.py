"""The optimisation of a group: how many steps, over what, and how fast each variable learns."""

from __future__ import annotations

from enum import Enum
from typing import Any

from pydantic import Field

from modcap.core.named import Frozen, key_fields
from modcap.ptq.methods import Method
from modcap.ptq.rounding import AnyRounding, SoftRounding

__all__ = ["Optimiser", "Precision", "RoundingStart", "flat_fields"]


class Precision(str, Enum):
    """What passes through modules compute in while they are optimised; variables, their gradients
    and all results are float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class RoundingStart(str, Enum):
    """Which integers a group has before any are learned: those nearest to each weight, or those by
    which each layer gives most nearly what it gave (:mod:`modcap.ptq.layerwise`)."""

    NEAREST = "nearest"
    LAYER_WISE = "layer-wise"


class Optimiser(Frozen):
    """The optimisation of one group (defaults: the published experiments)."""

    iterations: int = Field(20_000, ge=0, description="Adam steps per group")
    batch_size: int = Field(32, ge=1, description="images per step")
    rounding: AnyRounding = Field(
        SoftRounding(),
        description="soft: each weight up or down, as AdaRound does; straight-through: weights "
        "move, and are rounded in every step; a recipe file may also give its settings, as a "
        "mapping",
    )
    scale_rate: float = Field(
        4e-5,
        ge=0,
        description="learning rate of activation scales, absolute: a hundredth of one at most; 0 "
        "keeps them",
    )
    relative_scale_rate: bool = Field(
        False, description="scale_rate counts in units of the scale that the search found"
    )
    weight_scale_rate: float = Field(
        0.0, ge=0, description="relative learning rate of weight scales; 0 keeps them as searched"
    )
    bias_rate: float = Field(
        0.0,
        ge=0,
        description="learning rate of biases, relative to the root mean square of their layer's "
        "output; 0 keeps them",
    )
    precision: Precision = Field(
        Precision.FLOAT32,
        description="of passes through modules, in tuning too; bfloat16 is faster where the "
        "processor has it",
    )


_NAMES = {  # of settings beside those of the optimiser, in keys
    "rate": "rounding_rate",
    "decay": "rounding_decay",
    "quantize_probability": "keep_probability",
}


def flat_fields(settings: Optimiser, method: Method) -> dict[str, Any]:
    """What decides the result of an optimisation, as keys have it: the settings of the rounding
    and of the method beside those of the optimiser."""
    fields = key_fields(settings)
    for choice in (settings.rounding, method):
        fields |= {_NAMES.get(n, n): v for n, v in key_fields(choice).items() if n != "name"}
    return fields | {"rounding": settings.rounding.name}
