"""Fashion-MNIST: the idx files of Debian's package or of a folder, or the subset shipped here."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modcap.core import files
from modcap.core.errors import InputError
from modcap.core.messages import first_line
from modcap.data import npz
from modcap.data.images import Images, Split, split_of_one
from modcap.data.preprocess import Preprocess
from modcap.data.source import Source

__all__ = ["SOURCE"]

_NAME = "fashion-mnist"
_INSTALLED = Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist
_SHIPPED = Path(__file__).parents[2] / "examples" / "fashion_mnist" / "data"
_LARGEST_IDX = 2**28  # bytes; five times those of the real set


def _takes(spec: str) -> bool:
    return spec == _NAME or spec.startswith(f"{_NAME}:")


def _read(
    spec: str,
    split: Split,
    preprocess: Preprocess,
    limit: int | None,
    classes: Sequence[str] | None,
) -> Images:
    images = _fashion_mnist(spec.partition(":")[2], split)
    return images if limit is None else images.take(range(min(limit, len(images))))


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
            return npz.read_all(subset, _NAME)
    raise InputError(
        f"fashion-mnist is not in {' or '.join(map(str, candidates))}: name the folder of its idx "
        f"files with --data fashion-mnist:DIR"
    )


def _from_idx(pixels: Path, labels: Path, split: Split) -> Images:
    images, classes = _read_idx(pixels), _read_idx(labels).astype(np.int64)
    if images.ndim != 3 or classes.shape != images.shape[:1]:
        raise InputError(f"{pixels} and {labels} do not belong together: download them again")
    found = Images(images[:, None], classes, "fashion-mnist")
    return found.take(split_of_one(len(found), split)) if split == "calibration" else found


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


SOURCE = Source("fashion-mnist[:DIR]", _takes, _read)
