"""What is quantized in the check of a GPU: networks with random weights, and random images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from modcap import zoo
from modcap.checkpoints import _torchvision
from modcap.data.image_set import ImageSet
from modcap.graph.network import Network, build
from modcap.jobs.job import Cell
from modcap.jobs.worker_cache import WorkerCache
from modcap.recipe import Recipe

__all__ = ["LARGE", "SMALL", "Asked", "Subject"]

LARGE = ("resnet50", "resnet18", "mobilenet_v2")
"""At 224 × 224, as torchvision has them."""
SMALL = ("resnet18_narrow", "mobilenet_v2_x0_5")
"""Of the shipped checkpoints, at 28 × 28."""


@dataclass(frozen=True)
class Asked:
    """How the check runs.

    Attributes:
        device: cuda or cpu.
        quick: a short form, on tiny networks and few images.
    """

    device: str
    quick: bool

    @property
    def steps(self) -> dict[str, Any]:
        """Recipe fields of the short form."""
        few = {"iterations": 4, "batch_size": 8}
        return {"optimiser": few, "tuning": 4, "k": 1} if self.quick else {}


@dataclass(frozen=True)
class Subject:
    """A network and its images."""

    network: Network
    images: ImageSet

    @classmethod
    def made(cls, name: str, asked: Asked, count: int = 1024) -> Subject:
        """One of :data:`LARGE` or :data:`SMALL`; in the short form a small one in its place."""
        torch.manual_seed(0)
        images = _images(32 if asked.quick else count, large=name in LARGE and not asked.quick)
        return cls(build(_model(name, asked), images.normalized(0, 2)), images)

    def recipe(self, device: str, asked: Asked, **fields: Any) -> Recipe:
        """The quick preset at W2A4, on all images."""
        usual = {"w_bits": 2, "a_bits": 4, "calibration": len(self.images), "device": device}
        return Recipe.preset("quick", **usual | asked.steps | fields)

    def cell(self, recipe: Recipe) -> Cell:
        digest = self.images.digest
        return Cell(self.network, digest, digest, recipe, pixels=self.images.pixels.nbytes)

    def cache(self) -> WorkerCache:
        return WorkerCache.holding(
            {self.network.digest: self.network, self.images.digest: self.images}
        )


def _model(name: str, asked: Asked) -> nn.Module:
    if asked.quick:
        return _tiny().eval()
    owner: Any = zoo if name in SMALL else _torchvision.models()
    made: nn.Module = getattr(owner, name)()
    return made.eval()


def _tiny() -> nn.Module:
    """Of the short form."""
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 8, 3, 2), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(8, 10),
    )


def _images(count: int, large: bool) -> ImageSet:
    channels, side = (3, 224) if large else (1, 28)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(
        0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8
    )
    labels = torch.zeros(count, dtype=torch.int64)
    return ImageSet(drawn, labels, (0.5,) * channels, (0.25,) * channels)
