"""Values that a process keeps between two jobs, bounded by their bytes.

By hand: cachetools would be one more package that the bare library needs, for these lines.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
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

    def trim(self, limit: int) -> None:
        """Lets the oldest go until no more than ``limit`` bytes are left."""
        while self._kept and self.bytes > limit:
            _, (_, size) = self._kept.popitem(last=False)
            self.bytes -= size
