"""Images in memory, and which of them are for calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from modcap.core.errors import InputError

__all__ = [
    "FLOOR",
    "POOL",
    "Images",
    "Split",
    "calibration",
    "permutation",
    "split_of_one",
    "split_of_two",
]

Split = Literal["calibration", "evaluation", "all"]

POOL = 2048
"""Images that calibration draws from, at most."""

FLOOR = 16
"""Images that calibration needs at least: with fewer, ranges of activations mean nothing."""


@dataclass(frozen=True)
class Images:
    """Images at the network's size.

    Attributes:
        images: (N, C, H, W) uint8 (0 to 255) or float32 (0 to 1).
        labels: (N,) int64.
        source: where they come from, for people.
        classes: what labels stand for, in their order; None where images came without names.
    """

    images: NDArray[Any]
    labels: NDArray[np.int64]
    source: str
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Images:
        """The images at ``indices``, in that order."""
        chosen = np.asarray(indices, np.int64)
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    @cached_property
    def digest(self) -> str:
        """sha256 of images and labels."""
        hasher = sha256(f"{self.images.dtype} {self.images.shape}\n".encode())
        hasher.update(np.ascontiguousarray(self.images).data)
        hasher.update(np.ascontiguousarray(self.labels).data)
        return hasher.hexdigest()


def calibration(images: Images, count: int, seed: int) -> Images:
    """``count`` of ``images``, chosen by ``seed``.

    Raises:
        InputError: there are fewer, or ``count`` is too small to calibrate on.
    """
    if count < FLOOR:
        raise InputError(
            f"--calibration {count} is too small to measure ranges: use {FLOOR}, or more"
        )
    if count > len(images):
        raise InputError(
            f"--calibration {count}: {images.source} has {len(images)} images to calibrate on: "
            f"lower --calibration, or give more data"
        )
    return images.take(permutation(len(images), seed)[:count])


def permutation(count: int, seed: int) -> NDArray[np.int64]:
    """A permutation of ``range(count)`` that no version of numpy changes."""
    return np.random.RandomState(seed).permutation(count).astype(np.int64)


def split_of_one(count: int, split: Split) -> NDArray[np.int64]:
    """Which images of a source of one split belong to ``split``."""
    order = permutation(count, 0)
    pool = min(POOL, count // 2)
    return {"calibration": order[:pool], "evaluation": order[pool:], "all": order}[split]


def split_of_two(count: int, split: Split) -> NDArray[np.int64]:
    """Which images of the training split, or of the test split, belong to ``split``."""
    order = permutation(count, 0)
    return order[:POOL] if split == "calibration" else order
