"""Reads arrays out of an ``.npz``: what is declared is compared with what is there beforehand."""

from __future__ import annotations

import math
import os
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from modcap.core import files
from modcap.core.errors import InputError
from modcap.core.messages import first_line
from modcap.data import large_array

__all__ = ["read"]

_INFLATION = 100  # images are never smaller by more when compressed; deflate reaches 1,000
_SMALL = 64 * 2**20  # bytes that are nobody's concern
_LABELS = 2**31
_ALLOWED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes


def read(file: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The arrays ``images`` and ``labels`` of a file, as they are stored; None where there are no
    labels.

    Raises:
        InputError: there is no such file, or there are no images in it, or arrays take more memory
            than the machine has, or are a bomb.
    """
    name = f"data {file}"
    if not file.exists():
        raise InputError(f"{name} does not exist: check the path")
    files.check_regular(file, name)
    try:
        with warnings.catch_warnings(), zipfile.ZipFile(file) as archive:
            warnings.simplefilter("ignore")  # of old headers
            labelled = "labels.npy" in archive.namelist()
            images = _member(archive, "images")
            return images, _member(archive, "labels") if labelled else None
    except Exception as error:  # of zip, of numpy's headers, of memory
        raise InputError(
            f"{name} cannot be read ({first_line(error)}): give an .npz with arrays images and, "
            f"where they are known, labels"
        ) from error


def _member(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    try:
        entry = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise ValueError(f"it holds no {name}") from None
    _check_inflation(entry)
    with archive.open(entry) as opened:
        shape, dtype, _ = _header(opened)
        _check_size(math.prod(shape) * dtype.itemsize, shape, entry, opened.tell())
    with archive.open(entry) as opened:
        return _read_array(opened)


def _read_array(opened: IO[bytes]) -> NDArray[Any]:
    """What numpy reads, but into a file where it is large."""
    shape, dtype, in_rows = _header(opened)
    if not shape or not in_rows or math.prod(shape) * dtype.itemsize <= large_array.IN_MEMORY:
        opened.seek(0)
        small: NDArray[Any] = npy.read_array(opened, allow_pickle=False)
        return small
    found = large_array.empty(shape, dtype)
    for rows in large_array.chunks(found):
        part = found[rows].reshape(-1).view(np.uint8)
        if opened.readinto(part.data) != part.nbytes:  # type: ignore[attr-defined]
            raise ValueError("it ends too early")
    return found


def _check_inflation(entry: zipfile.ZipInfo) -> None:
    if entry.compress_type not in _ALLOWED or entry.flag_bits & 1:
        raise ValueError(f"{entry.filename} is packed as numpy packs nothing")
    if entry.file_size > max(_SMALL, _INFLATION * entry.compress_size):
        raise ValueError(
            f"{entry.filename} grows from {entry.compress_size:,} to {entry.file_size:,} bytes, "
            f"more than {_INFLATION} times, which no images do"
        )


def _header(opened: Any) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape, type, and whether it lies row by row."""
    version = npy.read_magic(opened)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"it is of version {version} of numpy's format")
    shape, by_columns, dtype = readers[version](opened)
    if dtype.hasobject:
        raise ValueError("it holds objects of Python, not numbers")
    return shape, dtype, not by_columns


def _check_size(size: int, shape: tuple[int, ...], entry: zipfile.ZipInfo, start: int) -> None:
    if size != entry.file_size - start or any(not 0 <= side < _LABELS for side in shape):
        raise ValueError(
            f"{entry.filename} declares shape {shape}, which is {size:,} bytes, and has "
            f"{entry.file_size - start:,}"
        )
    if size > _memory():
        raise ValueError(
            f"{entry.filename} takes {size / 2**30:.1f} GiB, and this machine has "
            f"{_memory() / 2**30:.1f}: keep fewer images in it"
        )


def _memory() -> int:
    """Bytes of this machine, whoever uses them."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
