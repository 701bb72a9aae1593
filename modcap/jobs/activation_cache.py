"""Activations of the calibration images: in a file where they are large, kept between two jobs."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from modcap.core.byte_cache import ByteCache

__all__ = ["CACHE", "Activations"]

CACHE = 1 << 30
"""Bytes of activations that a worker keeps between two jobs, at most."""


class Activations:
    """The activations last seen at the boundaries of groups: a cache, never stored or shipped.

    A job behind a prefix goes on from the nearest boundary that is kept, instead of running the
    whole prefix again; the result is the same to the bit.
    """

    def __init__(self, limit: int = CACHE) -> None:
        self._kept: ByteCache[Tensor] = ByteCache(limit)

    def get(self, key: Hashable) -> Tensor | None:
        return self._kept.get(key)

    def put(self, key: Hashable, x: Tensor, bound: int | None = None) -> None:
        """Keeps x; the oldest go when the limit, or ``bound`` bytes if that is less, are full."""
        self._kept.put(key, x, x.nbytes, bound)

    def clear(self) -> None:
        """Keeps none."""
        self._kept.trim(0)
