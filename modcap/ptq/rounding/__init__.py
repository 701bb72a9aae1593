"""The ways of rounding. A new one is a file here, and a name in :data:`AnyRounding`."""

from typing import Annotated

from pydantic import Field

from modcap.core.named import reading
from modcap.ptq.rounding.rounding import Rounding
from modcap.ptq.rounding.soft import SoftRounding
from modcap.ptq.rounding.straight_through import StraightThroughRounding

__all__ = ["AnyRounding", "Rounding", "SoftRounding", "StraightThroughRounding"]

AnyRounding = Annotated[
    SoftRounding | StraightThroughRounding,
    Field(discriminator="name"),
    reading("soft"),
]
