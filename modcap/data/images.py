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
from modcap.data import large_array

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
        labels: (N,) int64, or of a map (N, ...); None where images came without.
        source: where they come from, for people.
        classes: what labels stand for, in their order; None where images came without names.
        aside: how many of them, the last ones, are set aside for calibration, should it draw from
            the same place.
        left_out: how many others were left out for that reason.
    """

    images: NDArray[Any]
    labels: NDArray[np.int64] | None
    source: str
    classes: tuple[str, ...] | None = None
    aside: int = 0
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Images:
        """The images at ``indices``, in that order."""
        chosen = np.asarray(indices, np.int64)
        images = large_array.taken(self.images, chosen)
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, images=images, labels=labels, aside=0)

    def divided(self, split: Split, limit: int | None = None) -> Images:
        """Those of ``split``, at most ``limit``, where these are all of a source of one split."""
        chosen = self.take(split_of_one(len(self), split)[:limit])
        return chosen.marked(split, len(self))

    def marked(self, split: Split, count: int) -> Images:
        """As the first images of ``split`` of a source of one split, which has ``count``."""
        pool = _pool(count)
        if split == "evaluation":
            return replace(self, left_out=pool)
        aside = max(0, len(self) - (count - pool)) if split == "all" else 0
        return replace(self, aside=aside)

    def held_out(self) -> Images:
        """Without those that are set aside for calibration."""
        rest = self.take(range(len(self) - self.aside))
        return replace(rest, left_out=self.left_out + self.aside)

    @cached_property
    def digest(self) -> str:
        """sha256 of images, and of labels where there are such."""
        hasher = sha256(f"{self.images.dtype} {self.images.shape}\n".encode())
        hasher.update(np.ascontiguousarray(self.images).data)
        if self.labels is not None:
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
    """Which images of a source of one split belong to ``split``; of all, those that are set aside
    for calibration come last, so that the first ones are the same in ``evaluation``."""
    order, pool = permutation(count, 0), _pool(count)
    parts = {"calibration": order[:pool], "evaluation": order[pool:], "all": np.roll(order, -pool)}
    return parts[split]


def _pool(count: int) -> int:
    """How many images of a source of one split are set aside for calibration."""
    return min(POOL, count // 2)


def split_of_two(count: int, split: Split) -> NDArray[np.int64]:
    """Which images of the training split, or of the test split, belong to ``split``."""
    order = permutation(count, 0)
    return order[:POOL] if split == "calibration" else order
