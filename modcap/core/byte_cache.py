"""Values that a process keeps between two jobs, bounded by their bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Hashable
from typing import Generic, TypeVar

__all__ = ["ByteCache"]

_Value = TypeVar("_Value")


class ByteCache(Generic[_Value]):
    """What was used last stays; the oldest go where there is more than ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._kept: OrderedDict[Hashable, tuple[_Value, int]] = OrderedDict()

    def get(self, key: Hashable) -> _Value | None:
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Hashable, value: _Value, size: int, limit: int | None = None) -> None:
        """Keeps a value of ``size`` bytes, unless it alone is more than the limit."""
        limit = self.limit if limit is None else min(self.limit, limit)
        if key not in self._kept and size <= limit:
            self._kept[key] = value, size
            self.bytes += size
        self.trim(limit)

    def trim(self, limit: int, spare: Container[Hashable] = ()) -> None:
        """Lets the oldest go, but for those to ``spare``, until no more than ``limit`` bytes of
        others are left."""
        others = [key for key in self._kept if key not in spare]
        left = sum(self._kept[key][1] for key in others)
        for key in others:
            if left <= limit:
                return
            size = self._kept.pop(key)[1]
            left -= size
            self.bytes -= size
