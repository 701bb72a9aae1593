"""Where jobs read their inputs, and what a worker keeps in memory between two of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from modcap.data.image_set import ImageSet
from modcap.graph.network import Network
from modcap.jobs.activation_cache import Activations

__all__ = ["WorkerCache"]

_T = TypeVar("_T")
_INPUTS = 6  # parsed inputs that a worker keeps


@dataclass
class WorkerCache:
    """Reads inputs by digest and keeps the last few in memory, parsed.

    ``fetch`` returns the bytes of an input; it is asked once per digest while that is kept.
    """

    fetch: Callable[[str], bytes]
    activations: Activations = field(default_factory=Activations)
    _kept: dict[Hashable, Any] = field(default_factory=dict)

    @classmethod
    def holding(cls, inputs: Mapping[str, Any]) -> WorkerCache:
        """One that holds a few parsed inputs already, and which can fetch no other."""
        kept: dict[Hashable, Any] = dict(inputs.items())
        return cls(inputs.__getitem__, _kept=kept)

    def _keep(self, key: Hashable, make: Callable[[], _T]) -> _T:
        if key not in self._kept:
            made = make()
            while len(self._kept) >= _INPUTS:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = made
        value: _T = self._kept[key]
        return value

    def network(self, digest: str, device: str = "cpu") -> Network:
        """The network of this digest, on ``device``."""
        network = self._keep(digest, lambda: Network.from_bytes(self.fetch(digest)))
        if device == "cpu":
            return network
        return self._keep((digest, device), lambda: network.to(torch.device(device)))

    def images(self, digest: str) -> ImageSet:
        """The images of this digest, in the memory of the host."""
        return self._keep(digest, lambda: ImageSet.from_bytes(self.fetch(digest)))
