"""Reads whole files, but only regular ones: a fifo would wait for ever, a device never end."""

from __future__ import annotations

import stat
from pathlib import Path

from modcap.core.errors import InputError

__all__ = ["check_regular", "read"]


def check_regular(file: Path, name: str) -> int:
    """The size of a regular file; ``name`` is what messages call it.

    Raises:
        InputError: it is missing, or a directory, fifo, socket or device.
    """
    try:
        found = file.stat()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name} cannot be read ({reason}): check the path") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{name} cannot be read (it is no regular file): give a file")
    return found.st_size


def read(file: Path, name: str, limit: int | None = None) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        InputError: there is no such file, or it is larger.
    """
    size = check_regular(file, name)
    if limit is not None and size > limit:
        raise InputError(f"{name} has {size:,} bytes, and {limit:,} are read at most: shorten it")
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}): check the path") from error
