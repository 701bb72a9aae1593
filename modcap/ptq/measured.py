"""A figure that a metric gave, and how figures compare, wherever they are shown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["TOP1", "USUAL", "Scale"]

TOP1 = "top1"


@dataclass(frozen=True)
class Scale:
    """What a figure is measured in; results and reports hold its fields beside the figures.

    Attributes:
        metric: the name of the metric, also of its figures where these are logged.
        title: in tables, with its unit.
        higher_is_better: otherwise less is.
    """

    metric: str = TOP1
    metric_title: str = "top-1 %"
    higher_is_better: bool = True

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Scale:
        """That of a result, report or row of such; where it names no metric, it is of top-1."""
        names = ("metric", "metric_title", "higher_is_better")
        return cls(**{name: said[name] for name in names if name in said})

    @property
    def fields(self) -> dict[str, Any]:
        """As :meth:`of` reads them."""
        return asdict(self)

    @property
    def label(self) -> str:
        """Its name where figures are logged: of a user's function, what stands behind the colon."""
        return self.metric.rpartition(":")[2]

    @property
    def is_percent(self) -> bool:
        return self.metric_title.endswith("%")

    def value(self, said: Mapping[str, Any], prefix: str = "") -> float:
        """The figure in a result, report or row; of top-1 under that name, too."""
        name = f"{prefix}value"
        return float(said[name] if name in said else said[f"{prefix}{TOP1}"])

    def figures(self, value: float, prefix: str = "") -> dict[str, float]:
        """As :meth:`value` reads it."""
        named = {f"{prefix}{TOP1}": value} if self.metric == TOP1 else {}
        return named | {f"{prefix}value": value}

    def lost(self, full: float, value: float) -> float:
        """How much worse ``value`` is than that of full precision; negative where it is better."""
        worse = full - value if self.higher_is_better else value - full
        return round(worse, 4 if self.is_percent else 9)

    def goodness(self, value: float) -> float:
        """Larger for a better figure; one that is no number is the worst."""
        if math.isnan(value):
            return -math.inf
        return value if self.higher_is_better else -value

    def front(self, points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
        """Of points (size, figure) those that no smaller or equal one is as good as."""
        found: list[tuple[float, float]] = []
        for size, value in sorted(points, key=lambda point: (point[0], -self.goodness(point[1]))):
            if not found or self.goodness(value) > self.goodness(found[-1][1]):
                found.append((size, value))
        return found

    def text(self, value: float) -> str:
        """As tables show it."""
        return f"{value:.2f}" if self.is_percent else f"{value:.4g}"

    def said(self, value: float) -> str:
        """As sentences show it, with the unit."""
        return f"{value:.2f} %" if self.is_percent else f"{value:.4g}"

    @property
    def words(self) -> str:
        """What it is called in sentences, without its unit."""
        return self.metric_title.removesuffix("%").strip()

    @property
    def axis(self) -> str:
        """The label of an axis."""
        return f"{self.words}, %" if self.is_percent else self.metric_title


USUAL = Scale()
