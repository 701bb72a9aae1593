"""A set of images as jobs read it: raw pixels, labels and the normalisation, as bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from modcap.core.errors import InputError
from modcap.core.serialization import DamagedResult, digest, header_of

__all__ = ["ImageSet", "as_input"]


def as_input(images: object) -> Tensor:
    """Preprocessed images as a network takes them: other floating-point numbers become float32.

    Raises:
        InputError: they are no tensor (N, C, H, W) of floating-point numbers, or hold none.
    """
    if not isinstance(images, Tensor):
        raise InputError(
            f"images are of type {type(images).__name__}: give a torch.Tensor (N, C, H, W), float32"
        )
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise InputError(f"images are {kind}: give float32, preprocessed as for the model")
    if images.ndim != 4:
        raise InputError(f"images are of shape {tuple(images.shape)}: give (N, C, H, W)")
    if not images.numel():
        raise InputError(f"images are of shape {tuple(images.shape)}, which is empty: give some")
    return images.float()


@dataclass(frozen=True)
class ImageSet:
    """Images at the network's size, with labels.

    Attributes:
        pixels: (N, C, H, W) uint8 (0 to 255) or float32 (0 to 1).
        labels: (N,) int64.
        mean, std: per channel, applied to pixels on the scale 0 to 1.
    """

    pixels: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def check_labels(self, classes: int) -> None:
        """Refuses what accuracy cannot be measured on.

        Raises:
            InputError: there are no images, or labels of no class, which would count as misses.
        """
        if not len(self):
            raise InputError("there are no images: give some to measure accuracy on")
        outside = self.labels[(self.labels < 0) | (self.labels >= classes)]
        if len(outside):
            raise InputError(
                f"label {int(outside[0])} is none of the network's {classes} classes, 0 to "
                f"{classes - 1}: label images as it was trained"
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def normalized(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Images start to stop as the network takes them: (n, C, H, W) float32."""
        x = self.pixels[start:stop]
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (x - mean[:, None, None]) / std[:, None, None]

    def batches(self, size: int) -> Iterator[Tensor]:
        """All images as the network takes them, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.normalized(start, start + size)

    def to_bytes(self) -> bytes:
        """safetensors, the same for the same images."""
        header = {"normalization": json.dumps({"mean": self.mean, "std": self.std})}
        tensors = {"labels": self.labels.contiguous(), "pixels": self.pixels.contiguous()}
        return save(tensors, header)

    @classmethod
    def from_bytes(cls, data: bytes) -> ImageSet:
        """The inverse of :meth:`to_bytes`; raises :class:`DamagedResult` where it cannot be."""
        try:
            tensors, stated = load(data), header_of(data, "normalization")
            return cls(
                tensors["pixels"], tensors["labels"], tuple(stated["mean"]), tuple(stated["std"])
            )
        except (SafetensorError, ValueError, KeyError) as error:
            raise DamagedResult(f"not a set of images: {error}") from error

    @cached_property
    def digest(self) -> str:
        """sha256 of :meth:`to_bytes`."""
        return digest(self.to_bytes())
