"""Images and labels in an ``.npz``: ``images`` (N, C, H, W), uint8 or float32; ``labels`` (N,),
or of a map (N, ...) for metrics of the user's own, where they are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modcap.core.errors import InputError
from modcap.data import arrays
from modcap.data.images import Images, Split
from modcap.data.preprocess import Preprocess
from modcap.data.source import Source

__all__ = ["SOURCE", "read_all"]

_CHANNELS = (1, 3, 4)  # of images that people take


def read_all(file: Path, source: str) -> Images:
    """Every image of ``file``; ``source`` is what it is called."""
    images, labels = arrays.read(file)
    return _checked(images, labels, file, source)


def _takes(spec: str) -> bool:
    return spec.endswith(".npz")


def _read(
    spec: str,
    split: Split,
    preprocess: Preprocess,
    limit: int | None,
    classes: Sequence[str] | None,
) -> Images:
    return read_all(Path(spec), spec).divided(split, limit)


def _checked(images: NDArray[Any], labels: NDArray[Any] | None, file: Path, source: str) -> Images:
    if images.ndim != 4 or images.dtype not in (np.uint8, np.float32):
        raise InputError(
            f"data {file}: images are {images.dtype} of shape {images.shape}: "
            f"give uint8 or float32 of shape (N, C, H, W)"
        )
    if images.shape[3] in _CHANNELS and min(images.shape[1:3]) > max(_CHANNELS):
        raise InputError(
            f"data {file}: images of shape {images.shape} have their channels last: save "
            f"images.transpose(0, 3, 1, 2), of shape (N, C, H, W)"
        )
    numbers = None if labels is None else _numbers(labels, len(images), file)
    return Images(images, numbers, source)


def _numbers(labels: NDArray[Any], count: int, file: Path) -> NDArray[np.int64]:
    if labels.shape[:1] != (count,) or labels.ndim == 2 or labels.dtype.kind not in "iu":
        raise InputError(
            f"data {file}: labels are {labels.dtype} of shape {labels.shape} for {count} "
            f"images: give one integer for each, a map (H, W) of integers for each, or no labels"
        )
    if labels.size and int(labels.max()) > np.iinfo(np.int32).max:
        raise InputError(f"data {file}: label {labels.max()} is the number of no class")
    return labels.astype(np.int64)


SOURCE = Source("an .npz with images, and labels where they are known", _takes, _read)
