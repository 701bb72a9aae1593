"""Activations of the calibration images: in a file where they are large, kept between two jobs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from torch import Tensor

__all__ = ["CACHE", "Activations"]

CACHE = 1 << 30
"""Bytes of activations that a worker keeps between two jobs, at most."""


class Activations:
    """The activations last seen at the boundaries of groups: a cache, never stored or shipped.

    A job behind a prefix goes on from the nearest boundary that is kept, instead of running the
    whole prefix again; the result is the same to the bit.
    """

    def __init__(self, limit: int = CACHE) -> None:
        self._limit, self._size = limit, 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable) -> Tensor | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: Hashable, x: Tensor, bound: int | None = None) -> None:
        """Keeps x; the oldest go when the limit, or ``bound`` bytes if that is less, are full."""
        limit = self._limit if bound is None else min(self._limit, bound)
        if key not in self._kept and x.nbytes <= limit:
            self._kept[key] = x
            self._size += x.nbytes
        while self._size > limit:
            self._size -= self._kept.popitem(last=False)[1].nbytes
