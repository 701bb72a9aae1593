"""Arrays of images: in memory where they are small, in a file without a name where they are not.

A file is paged in as it is read, and gives its room back without a copy elsewhere.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from modcap.core.errors import InputError

__all__ = ["IN_MEMORY", "chunks", "empty", "taken"]

IN_MEMORY = 64 << 20
"""Bytes of an array above which it lies in a file."""

_CHUNK = 16 << 20


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array to be filled.

    Raises:
        InputError: neither memory nor the folder of temporary files has room for it.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        if size <= IN_MEMORY:
            return np.empty(shape, dtype)
        return _in_file(shape, dtype, size)
    except (MemoryError, ValueError, OSError, OverflowError):
        raise InputError(
            f"{shape[0]:,} images of {' × '.join(map(str, shape[1:]))} do not fit into memory, nor "
            f"into {tempfile.gettempdir()} ({size / 2**30:.1f} GiB): name a larger folder by "
            "TMPDIR, pass --preprocess with a smaller resize=… and crop=…, or --eval-images"
        ) from None


def _in_file(shape: tuple[int, ...], dtype: DTypeLike, size: int) -> NDArray[Any]:
    with tempfile.NamedTemporaryFile(prefix="modcap-images-") as file:
        if sys.platform == "darwin":
            file.truncate(size)
        else:
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file.name, dtype, "r+", shape=shape)


def chunks(array: NDArray[Any]) -> Iterator[slice]:
    """Runs of rows that are read at once."""
    row = max(1, array[:1].nbytes)
    step = max(1, _CHUNK // row)
    return (slice(start, start + step) for start in range(0, len(array), step))


def taken(array: NDArray[Any], indices: NDArray[np.int64]) -> NDArray[Any]:
    """``array[indices]``, which lies in a file where it is large."""
    found = empty((len(indices), *array.shape[1:]), array.dtype)
    for rows in chunks(found):
        found[rows] = array[indices[rows]]
    return found
