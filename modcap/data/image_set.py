"""A set of images as jobs read it: raw pixels, labels and the normalisation, as bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from modcap.core.errors import InputError
from modcap.core.serialization import DamagedResult, header_of

__all__ = ["ImageSet", "as_input"]

_PART = 16 << 20  # bytes that are written at once
_LONGEST_HEADER = 1 << 20
_TYPES = {"I64": torch.int64, "U8": torch.uint8, "F32": torch.float32}


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
    """Images at the network's size, and their labels where there are such.

    Attributes:
        pixels: (N, C, H, W) uint8 (0 to 255) or float32 (0 to 1).
        labels: (N,) int64, or of a map (N, ...), for metrics of the user's own; or None.
        mean, std: per channel, applied to pixels on the scale 0 to 1.
        lies_in_a_file: whether pixels are read as they are needed, and take no memory.
    """

    pixels: Tensor
    labels: Tensor | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    lies_in_a_file: bool = False

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuses a set that is empty, or whose images are not of ``shape`` (C, H, W).

        Raises:
            InputError: that is so.
        """
        if not len(self):
            raise InputError("there are no images: give some to measure on")
        own = tuple(self.pixels.shape[1:])
        if own != tuple(shape):
            raise InputError(
                f"images are {' × '.join(map(str, own))} (channels × height × width), and the "
                f"network was captured for {' × '.join(map(str, shape))}, the size of the "
                f"calibration images: give all in one size, or --preprocess with resize= and crop="
            )

    def check_labels(self, classes: int) -> Tensor:
        """The labels (N,), if accuracy can be measured by them.

        Raises:
            InputError: there are no images, or labels of no class, which would count as misses.
        """
        if not len(self):
            raise InputError("there are no images: give some to measure accuracy on")
        if self.labels is None:
            raise InputError("the images have no labels: give labels to measure top-1 by")
        if self.labels.ndim != 1:
            raise InputError("labels are maps: top-1 needs one class for each image")
        outside = self.labels[(self.labels < 0) | (self.labels >= classes)]
        if len(outside):
            raise InputError(
                f"label {int(outside[0])} is none of the network's {classes} classes, 0 to "
                f"{classes - 1}: label images as it was trained"
            )
        return self.labels

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def image_bytes(self) -> int:
        """Of one image as the network takes it."""
        return 4 * self.pixels[:1].numel()

    def normalized(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Images start to stop as the network takes them: (n, C, H, W) float32."""
        x = self.pixels[start:stop]
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (x - mean[:, None, None]) / std[:, None, None]

    def first(self, count: int) -> ImageSet:
        """The first ``count``, or all where there are fewer."""
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, pixels=self.pixels[:count], labels=labels)

    def batches(self, size: int) -> Iterator[Tensor]:
        """All images as the network takes them, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.normalized(start, start + size)

    def parts(self) -> Iterator[bytes]:
        """:meth:`to_bytes`, some megabytes at a time."""
        yield self._head
        for tensor in self._tensors.values():
            row = max(1, tensor[:1].nbytes)
            for part in tensor.split(max(1, _PART // row)):
                yield part.contiguous().numpy().tobytes()

    @property
    def file_bytes(self) -> int:
        """Length of :meth:`to_bytes`."""
        return len(self._head) + sum(tensor.nbytes for tensor in self._tensors.values())

    def to_bytes(self) -> bytes:
        """safetensors, the same for the same images."""
        return b"".join(self.parts())

    def write(self, file: IO[bytes]) -> None:
        """Writes :meth:`to_bytes`, without a copy of it in memory."""
        for part in self.parts():
            file.write(part)

    @property
    def _tensors(self) -> dict[str, Tensor]:
        """As they lie one after another in a file."""
        labels = {} if self.labels is None else {"labels": self.labels}
        return labels | {"pixels": self.pixels}

    @property
    def _head(self) -> bytes:
        empty = {name: tensor[:0] for name, tensor in self._tensors.items()}
        stated = {"normalization": json.dumps({"mean": self.mean, "std": self.std})}
        return _resized(save(empty, stated), self._tensors)

    @classmethod
    def from_file(cls, path: Path) -> ImageSet:
        """What :meth:`write` wrote; pixels are read from the file as they are needed.

        Raises:
            DamagedResult: it is something else.
        """
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                head = file.read(min(length, _LONGEST_HEADER))
            described = json.loads(head)
            stated = json.loads(described.pop("__metadata__")["normalization"])
            whole = torch.from_file(
                str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8
            )
            parts = {name: _mapped(whole[8 + length :], part) for name, part in described.items()}
            labels = parts["labels"].clone() if "labels" in parts else None
            mean, std = tuple(stated["mean"]), tuple(stated["std"])
            return cls(parts["pixels"], labels, mean, std, True)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise DamagedResult(f"not a set of images: {error}") from error

    @classmethod
    def from_bytes(cls, data: bytes) -> ImageSet:
        """The inverse of :meth:`to_bytes`; raises :class:`DamagedResult` where it cannot be."""
        try:
            tensors, stated = load(data), header_of(data, "normalization")
            mean, std = tuple(stated["mean"]), tuple(stated["std"])
            return cls(tensors["pixels"], tensors.get("labels"), mean, std)
        except (SafetensorError, ValueError, KeyError) as error:
            raise DamagedResult(f"not a set of images: {error}") from error

    @cached_property
    def digest(self) -> str:
        """sha256 of :meth:`to_bytes`."""
        hasher = sha256()
        for part in self.parts():
            hasher.update(part)
        return hasher.hexdigest()


def _mapped(data: Tensor, described: dict[str, Any]) -> Tensor:
    """A tensor of the bytes behind the header of a safetensors file, which stays where it is."""
    start, end = described["data_offsets"]
    return data[start:end].view(_TYPES[described["dtype"]]).reshape(described["shape"])


def _resized(saved: bytes, tensors: dict[str, Tensor]) -> bytes:
    """The header of ``tensors``, made from ``saved``, in which they are empty."""
    length = int.from_bytes(saved[:8], "little")
    described = json.loads(saved[8 : 8 + length])
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.nbytes
        described[name] |= {"shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
