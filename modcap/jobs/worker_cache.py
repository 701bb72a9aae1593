"""Where jobs read their inputs, and what a worker keeps in memory between two of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from modcap.core.byte_cache import ByteCache
from modcap.data.image_set import ImageSet
from modcap.graph.network import Network
from modcap.jobs.activation_cache import Activations

__all__ = ["WorkerCache"]

_T = TypeVar("_T")
_INPUTS = 96 << 20  # bytes of inputs kept between two jobs: part of the base of every estimate


@dataclass
class WorkerCache:
    """Reads inputs by digest and keeps them in memory, parsed.

    ``fetch`` returns the bytes of an input, or a file of these, out of which images are read as
    they are needed; it is asked once per digest while what it gave is kept. Who
    runs many jobs calls :meth:`make_room` before and :meth:`tidy` after each.
    """

    fetch: Callable[[str], bytes | Path]
    activations: Activations = field(default_factory=Activations)
    _kept: ByteCache[Any] = field(default_factory=lambda: ByteCache(sys.maxsize))

    @classmethod
    def holding(cls, inputs: Mapping[str, Any]) -> WorkerCache:
        """One that holds a few parsed inputs already, and which can fetch no other."""
        cache = cls(inputs.__getitem__)
        for digest, value in inputs.items():
            cache._kept.put(digest, value, 0)
        return cache

    def _keep(self, key: Hashable, make: Callable[[], _T]) -> _T:
        value: _T | None = self._kept.get(key)
        if value is None:
            value = make()
            self._kept.put(key, value, _bytes_of(value))
        return value

    def make_room(self, counted: bool) -> None:
        """Lets go the activations, unless the estimate of the next job ``counted`` them."""
        if not counted:
            self.activations.clear()

    def tidy(self) -> None:
        """Lets go the inputs that the base of every estimate has no room for."""
        self._kept.trim(_INPUTS)

    def network(self, digest: str, device: str = "cpu") -> Network:
        """The network of this digest, on ``device``."""
        network = self._keep(digest, lambda: Network.from_bytes(_read(self.fetch(digest))))
        if device == "cpu":
            return network
        return self._keep((digest, device), lambda: network.to(torch.device(device)))

    def images(self, digest: str) -> ImageSet:
        """The images of this digest, in the memory of the host."""
        return self._keep(digest, lambda: _images(self.fetch(digest)))


def _read(found: bytes | Path) -> bytes:
    return found.read_bytes() if isinstance(found, Path) else found


def _images(found: bytes | Path) -> ImageSet:
    return ImageSet.from_file(found) if isinstance(found, Path) else ImageSet.from_bytes(found)


def _bytes_of(value: object) -> int:
    if isinstance(value, Network):
        modules = value.partition.modules
        return sum(tensor.nbytes for module in modules for tensor in module.state_dict().values())
    assert isinstance(value, ImageSet)
    labels = 0 if value.labels is None else value.labels.nbytes
    return labels + (0 if value.lies_in_a_file else value.pixels.nbytes)
