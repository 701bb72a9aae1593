"""Calibration and test images: Fashion-MNIST, a folder of images, or an ``.npz`` of arrays.

A source of at most one split is divided: calibration draws from a pool, the first 2,048 images (at
most half) of a fixed permutation, and evaluation has the rest, in that order. A source with a
training split of its own gives a pool of it alone. So the two never share an image, and the same
source gives the same images on every machine.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from modcap.core import files
from modcap.core.errors import InputError
from modcap.core.messages import first_line
from modcap.data import arrays, image_folder
from modcap.data.preprocess import Preprocess

__all__ = ["FLOOR", "POOL", "Images", "Split", "calibration", "load", "permutation"]

Split = Literal["calibration", "evaluation", "all"]

POOL = 2048
"""Images that calibration draws from, at most."""

FLOOR = 16
"""Images that calibration needs at least: with fewer, ranges of activations mean nothing."""

_INSTALLED = Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist
_SHIPPED = Path(__file__).parents[2] / "examples" / "fashion_mnist" / "data"
_LARGEST_IDX = 2**28  # bytes; five times those of the real set


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


def load(
    spec: str,
    *,
    split: Split,
    preprocess: Preprocess,
    limit: int | None = None,
    classes: Sequence[str] | None = None,
) -> Images:
    """Reads images.

    Args:
        spec: ``fashion-mnist``, ``fashion-mnist:DIR``, a directory with one folder per class
            (below ``train`` and ``val``, ``valid``, ``validation`` or ``test`` where there are
            such; those of ``train`` number the classes), or an ``.npz`` of ``images`` (N, C, H, W;
            uint8 or float32) and ``labels`` (N,).
        split: ``calibration`` and ``evaluation`` share no image; ``all`` is a whole source of one
            split, or the test split of one that has two.
        preprocess: resize and crop apply to a folder of image files.
        limit: how many images of the split, the first of them, at most; others are not decoded.
        classes: names that number the folders of classes, in place of those that are found.

    Raises:
        InputError: there are no such images, or they do not fit ``preprocess``.
    """
    if spec == "fashion-mnist" or spec.startswith("fashion-mnist:"):
        images = _fashion_mnist(spec.partition(":")[2], split)
        if limit is not None:
            images = images.take(range(min(limit, len(images))))
    elif spec.endswith(".npz"):
        whole = _read_npz(Path(spec), spec)
        images = whole.take(_indices(len(whole), split)[:limit])
    else:
        images = _folder(Path(spec), split, preprocess, limit, classes)
    channels = images.images.shape[1]
    if channels != preprocess.channels:
        raise InputError(
            f"images of {spec} have {channels} channels, the preprocessing is for "
            f"{preprocess.channels}: pass --preprocess with {channels} values of mean and std, or "
            f"data that the network was trained on"
        )
    preprocess.check_values(images.images, f"data {spec}")
    return images


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


def _indices(count: int, split: Split) -> NDArray[np.int64]:
    """Which images of a source of one split belong to ``split``."""
    order = permutation(count, 0)
    pool = min(POOL, count // 2)
    return {"calibration": order[:pool], "evaluation": order[pool:], "all": order}[split]


def _fashion_mnist(folder: str, split: Split) -> Images:
    candidates = [Path(folder)] if folder else [_INSTALLED, _SHIPPED]
    stem = "train" if split == "calibration" else "t10k"
    for candidate in candidates:
        for suffix in (".gz", ""):
            pixels = candidate / f"{stem}-images-idx3-ubyte{suffix}"
            if pixels.exists():
                labels = candidate / f"{stem}-labels-idx1-ubyte{suffix}"
                return _from_idx(pixels, labels, split)
        subset = candidate / ("calibration.npz" if split == "calibration" else "evaluation.npz")
        if subset.exists():
            return _read_npz(subset, "fashion-mnist")
    raise InputError(
        f"fashion-mnist is not in {' or '.join(map(str, candidates))}: name the folder of its idx "
        f"files with --data fashion-mnist:DIR"
    )


def _from_idx(pixels: Path, labels: Path, split: Split) -> Images:
    images, classes = _read_idx(pixels), _read_idx(labels).astype(np.int64)
    if images.ndim != 3 or classes.shape != images.shape[:1]:
        raise InputError(f"{pixels} and {labels} do not belong together: download them again")
    found = Images(images[:, None], classes, "fashion-mnist")
    return found.take(_indices(len(found), split)) if split == "calibration" else found


def _read_idx(file: Path) -> NDArray[np.uint8]:
    """An array in the idx format of MNIST: two zeros, type, rank, sizes, bytes."""
    packed = files.read(file, f"data {file}", _LARGEST_IDX)
    try:
        raw = bytearray(_unpacked(packed) if file.suffix == ".gz" else packed)  # writable
        shape = np.frombuffer(raw, ">u4", raw[3], offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + shape.nbytes).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise InputError(
            f"{file} cannot be read ({first_line(error)}): it is damaged, download it again"
        ) from error


def _unpacked(packed: bytes) -> bytes:
    with gzip.open(BytesIO(packed)) as opened:
        raw = opened.read(_LARGEST_IDX + 1)
    if len(raw) > _LARGEST_IDX:
        raise ValueError(f"it grows to more than {_LARGEST_IDX:,} bytes")
    return raw


def _read_npz(file: Path, source: str) -> Images:
    images, labels = arrays.read(file)
    return _checked(images, labels, file, source)


def _checked(images: NDArray[Any], labels: NDArray[Any], file: Path, source: str) -> Images:
    if images.ndim != 4 or images.dtype not in (np.uint8, np.float32):
        raise InputError(
            f"data {file}: images are {images.dtype} of shape {images.shape}: "
            f"give uint8 or float32 of shape (N, C, H, W)"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise InputError(
            f"data {file}: labels are {labels.dtype} of shape {labels.shape} for {len(images)} "
            f"images: give one integer for each"
        )
    if labels.size and int(labels.max()) > np.iinfo(np.int32).max:
        raise InputError(f"data {file}: label {labels.max()} is the number of no class")
    return Images(images, labels.astype(np.int64), source)


def _folder(
    folder: Path,
    split: Split,
    preprocess: Preprocess,
    limit: int | None,
    classes: Sequence[str] | None,
) -> Images:
    if not folder.is_dir():
        raise InputError(
            f"data {folder} does not exist: give fashion-mnist, a directory with one folder of "
            f"images per class, or an .npz"
        )
    train, test = image_folder.splits(folder) or (folder, folder)
    names = tuple(image_folder.names(train) if classes is None else classes)
    whose = str(train) if classes is None else "the network"
    place = train if split == "calibration" else test
    found = image_folder.listed(place, names, whose)
    chosen = _indices(len(found), split) if train == test else _divided(len(found), split)
    images, labels = image_folder.decoded([found[i] for i in chosen[:limit]], preprocess)
    return Images(images, labels, str(folder), names)


def _divided(count: int, split: Split) -> NDArray[np.int64]:
    """Which images of a source with two splits belong to the one that was asked for."""
    order = permutation(count, 0)
    return order[:POOL] if split == "calibration" else order
