"""Where jobs read their inputs, and what a worker keeps in memory between two of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from modcap.images import ImageSet
from modcap.network import Network
from modcap.plan import Job

__all__ = ["Activations", "Workbench"]

_T = TypeVar("_T")
_INPUTS = 6  # parsed inputs that a workbench keeps
_BYTES = 1 << 30  # of activations that it keeps


class Activations:
    """The activations last seen at the boundaries of groups: a cache, never stored or shipped.

    A job behind a prefix goes on from the nearest boundary that is kept, instead of running the
    whole prefix again; the result is the same to the bit. The oldest go when ``limit`` bytes are
    full.
    """

    def __init__(self, limit: int = _BYTES) -> None:
        self._limit, self._size = limit, 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable) -> Tensor | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: Hashable, x: Tensor) -> None:
        if key in self._kept or x.nbytes > self._limit:
            return
        self._kept[key] = x
        self._size += x.nbytes
        while self._size > self._limit:
            self._size -= self._kept.popitem(last=False)[1].nbytes


@dataclass
class Workbench:
    """Reads inputs by digest and keeps the last few in memory, parsed.

    ``fetch`` returns the bytes of an input; it is asked once per digest while that is kept.
    """

    fetch: Callable[[str], bytes]
    activations: Activations = field(default_factory=Activations)
    _kept: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def holding(cls, inputs: dict[str, Any]) -> Workbench:
        """A workbench on which a few parsed inputs lie already, and which can fetch no other."""
        return cls(inputs.__getitem__, _kept=dict(inputs))

    def _keep(self, digest: str, parse: Callable[[bytes], _T]) -> _T:
        if digest not in self._kept:
            while len(self._kept) >= _INPUTS:
                del self._kept[next(iter(self._kept))]
            self._kept[digest] = parse(self.fetch(digest))
        value: _T = self._kept[digest]
        return value

    def network(self, job: Job) -> Network:
        return self._keep(job.inputs["network"], Network.from_bytes)

    def images(self, job: Job, role: str) -> ImageSet:
        return self._keep(job.inputs[role], ImageSet.from_bytes)
