"""The metric that is asked for, by its name. Reading it does not wait for torch."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from modcap.core.named import Frozen, sparse

__all__ = ["HOW", "MetricName"]

HOW = "give top1, agreement, error, or package.module:function"
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class MetricName(Frozen):
    """Which metric is wanted.

    Attributes:
        name: of one of :data:`modcap.ptq.metrics.METRICS`, or ``package.module:function``, which
            is the user's own; '' is the one that fits network and images.
        code: sha256 of the file that holds the user's function, so that what another one measured
            is not taken for what this one does; '' where it is not known.
    """

    name: str = Field("", max_length=500)
    code: str = sparse("", pattern="^([0-9a-f]{64})?$")

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if ":" in name:
            if not _FUNCTION.fullmatch(name):
                raise ValueError(f"{name!r} is no metric: {HOW}")
        elif name:
            from modcap.ptq.metrics import METRICS

            if name not in METRICS:
                raise ValueError(f"{name!r} is no metric: {HOW}")
        return name

    @property
    def of_user(self) -> bool:
        """Whether it is a function of the user's own."""
        return ":" in self.name
