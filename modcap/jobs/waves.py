"""Segments: how the schedule ``waves`` divides a network, so that its parts need not wait.

A segment begins with full-precision input. In front of the modules that it gives, it reconstructs
others for their sake alone, its *lead-in*: the first module that is kept then sees an input with
the error of those just before it, as it will in the end, and corrects it. What a segment gives is
used; its lead-in is not, because the segment before gives those modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Segment", "segments"]


class Segment(NamedTuple):
    """Modules ``start`` to ``stop`` are given; ``first`` to ``start`` are the lead-in."""

    first: int
    start: int
    stop: int


def segments(costs: Sequence[float], share: float) -> tuple[Segment, ...]:
    """Divides a chain of modules into segments that cover it.

    The limit of a segment's cost is ``share`` of the whole, or the most costly module: nothing is
    shorter than that. A segment gives as many modules as half of the limit holds, at least one, and
    leads in with as many as still fit, while all lead-ins so far cost no more than what was given:
    the work at most doubles.

    Args:
        costs: of each module.
        share: of the whole cost; 0 makes each module a segment without lead-in.

    Example:
        >>> segments([1.0, 1.0, 1.0, 1.0, 1.0], 0.4)
        (Segment(first=0, start=0, stop=1), Segment(first=0, start=1, stop=2), \
Segment(first=1, start=2, stop=3), Segment(first=2, start=3, stop=4), \
Segment(first=3, start=4, stop=5))
    """
    limit = max(share * sum(costs), *costs) * (1 + 1e-9) if share else 0.0
    found: list[Segment] = []
    start, spare = 0, 0.0
    while start < len(costs):
        stop, own = start + 1, costs[start]
        while stop < len(costs) and own + costs[stop] <= limit / 2:
            own += costs[stop]
            stop += 1
        spare += own
        first = start
        while first > 0 and costs[first - 1] <= min(limit - own, spare):
            first -= 1
            own += costs[first]
            spare -= costs[first]
        found.append(Segment(first, start, stop))
        start = stop
    return tuple(found)
