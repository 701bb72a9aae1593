"""Where jobs read their inputs, and what a worker keeps in memory between two of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from modcap.activations import Activations
from modcap.byte_cache import ByteCache
from modcap.images import ImageSet
from modcap.jobs import Job, Kind
from modcap.network import Network

__all__ = ["Workbench"]

_T = TypeVar("_T")
_INPUTS = 96 << 20  # bytes of inputs kept between two jobs: part of the base of every estimate
_ESTIMATED = (Kind.RECONSTRUCT, Kind.TUNE)  # jobs whose estimate counts activations that are kept


@dataclass
class Workbench:
    """Reads inputs by digest and keeps them in memory, parsed.

    ``fetch`` returns the bytes of an input; it is asked once per digest while that is kept. Who
    runs many jobs calls :meth:`make_room` before and :meth:`tidy` after each.
    """

    fetch: Callable[[str], bytes]
    activations: Activations = field(default_factory=Activations)
    _kept: ByteCache[Any] = field(default_factory=lambda: ByteCache(sys.maxsize))

    @classmethod
    def holding(cls, inputs: Mapping[str, Any]) -> Workbench:
        """A workbench on which a few parsed inputs lie already, and which can fetch no other."""
        bench = cls(inputs.__getitem__)
        for digest, value in inputs.items():
            bench._kept.put(digest, value, 0)
        return bench

    def _keep(self, key: Hashable, make: Callable[[], _T]) -> _T:
        value: _T | None = self._kept.get(key)
        if value is None:
            value = make()
            self._kept.put(key, value, _bytes_of(value))
        return value

    def make_room(self, job: Job) -> None:
        """Lets go what the estimate of ``job`` does not count."""
        if job.kind not in _ESTIMATED and not job.small:
            self.activations.clear()

    def tidy(self) -> None:
        """Lets go the inputs that the base of every estimate has no room for."""
        self._kept.trim(_INPUTS)

    def network(self, job: Job) -> Network:
        """The network of ``job``, on the device of ``job``."""
        digest = job.inputs["network"]
        network = self._keep(digest, lambda: Network.from_bytes(self.fetch(digest)))
        if job.device == "cpu":
            return network
        return self._keep((digest, job.device), lambda: network.to(torch.device(job.device)))

    def images(self, job: Job, role: str) -> ImageSet:
        """Images of ``job``, in the memory of the host."""
        digest = job.inputs[role]
        return self._keep(digest, lambda: ImageSet.from_bytes(self.fetch(digest)))


def _bytes_of(value: object) -> int:
    if isinstance(value, Network):
        modules = value.partition.modules
        return sum(tensor.nbytes for module in modules for tensor in module.state_dict().values())
    assert isinstance(value, ImageSet)
    return value.pixels.nbytes + value.labels.nbytes
