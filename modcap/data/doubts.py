"""What makes a measured accuracy doubtful: a network that guesses, and images that it was
calibrated on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from modcap.data.images import Images
from modcap.data.preprocess import Preprocess

__all__ = [
    "chance_of",
    "doubt_of_accuracy",
    "doubt_of_overlap",
    "doubt_of_pixels",
    "doubt_of_size",
    "overlap",
]

_Z = 3.09  # standard deviations: 99.9 %, one-sided
_SHARE = 0.1  # of the way from chance to all right, that is hardly more than chance
_FEW = 0.01  # of the images that calibration draws from: natural sets hold a few twice
_CONTRAST = 0.1  # of all that a pixel can be: images that differ by less are nearly constant
_SEEN = 2048  # images whose pixels are looked at
_PROBES = 64  # values of an image that tell it from most others


def chance_of(images: Images, outputs: int) -> float:
    """Percent of ``images`` that are right by always naming their commonest class; where there is
    only one class, or no image, those by naming any of ``outputs`` classes."""
    assert images.labels is not None  # else there is nothing to guess
    counts = np.unique(images.labels, return_counts=True)[1]
    if len(counts) < 2:
        return 100 / max(1, outputs)
    return 100 * float(counts.max()) / len(images)


def doubt_of_accuracy(top1: float, images: int, chance: float) -> str | None:
    """What to say of a full-precision network that hardly does better than guessing.

    The rule: the lower end of Wilson's score interval for ``top1`` (one-sided, 99.9 %) is not a
    tenth of the way from chance to 100 %. Of 10,000 images of ten equally common classes that is so
    below 20.2 %; of 100 images, below 31.1 %.

    Args:
        top1: percent of ``images`` that are right in full precision.
        images: how many were measured.
        chance: percent that guessing gets right.
    """
    if _lower_end(top1 / 100, images) > (chance + _SHARE * (100 - chance)) / 100:
        return None
    return (
        f"full precision gets {top1:.2f} % of {images:,} test images right, hardly more than "
        f"always naming the commonest class ({chance:.2f} %): no figure means anything until that "
        f"is mended; check --preprocess, that labels number classes as in training (--classes), "
        f"and the checkpoint"
    )


def _lower_end(share: float, count: int) -> float:
    """Of Wilson's score interval (1927) of a share of ``count``."""
    if not count:
        return 0.0
    z2 = _Z * _Z
    spread = _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return (share + z2 / (2 * count) - spread) / (1 + z2 / count)


def doubt_of_pixels(images: Images, preprocess: Preprocess) -> str | None:
    """What to say where all pixels are nearly the same: of 0 and 1 in bytes, of 12 bits in 16, or
    scaled twice."""
    if not len(images) or preprocess.range == "any":
        return None
    seen = images.images[:_SEEN]
    low, high = float(seen.min()), float(seen.max())
    full = 255 if seen.dtype == np.uint8 else 1
    if high - low >= _CONTRAST * full:
        return None
    return (
        f"pixels of {images.source} reach from {low:g} to {high:g} of 0 to {full}, so that images "
        f"are nearly constant: scale them to the whole range, as in training"
    )


def doubt_of_size(images: Images, preprocess: Preprocess) -> str | None:
    """What to say of arrays, which are taken as they are, where files would be cropped."""
    height, width = images.images.shape[2:]
    crop = preprocess.crop
    if crop is None or not len(images) or (height, width) == (crop, crop):
        return None
    return (
        f"images of {images.source} are {height} × {width}, and the preprocessing crops to {crop}: "
        f"arrays are taken as they are; if the network was trained on these sizes, say "
        f"--preprocess without crop"
    )


def overlap(pool: Images, tests: Images) -> int:
    """How many images of ``pool`` are among ``tests``, value by value."""
    if pool.images.shape[1:] != tests.images.shape[1:] or pool.images.dtype != tests.images.dtype:
        return 0
    wanted = set(_probes(pool.images))
    near = [index for index, probe in enumerate(_probes(tests.images)) if probe in wanted]
    known = {sha256(tests.images[index].tobytes()).digest() for index in near}
    if not known:
        return 0
    return sum(sha256(image.tobytes()).digest() in known for image in pool.images)


def _probes(images: NDArray[np.generic]) -> Iterator[bytes]:
    """A few values of each image, as bytes."""
    flat = images.reshape(len(images), -1)
    step = max(1, flat.shape[1] // _PROBES)
    return (row.tobytes() for row in np.ascontiguousarray(flat[:, step // 2 :: step]))


def doubt_of_overlap(pool: Images, tests: Images) -> str | None:
    """What to say where more than a hundredth of the images that calibration draws from are test
    images too: accuracy on those flatters."""
    same = overlap(pool, tests)
    if same <= _FEW * len(pool):
        return None
    return (
        f"{same:,} of the {len(pool):,} images that calibration draws from ({pool.source}) are "
        f"test images too ({tests.source}): figures on them flatter; give others with --eval-data"
    )
