"""Reads whole files, but only regular ones: a fifo would wait for ever, a device never end."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from modcap.core.errors import InputError

__all__ = ["check_regular", "read", "write"]


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


def write(file: Path, data: bytes) -> None:
    """Writes a file that others may read, whole or not at all.

    Raises:
        InputError: it cannot be written there.
    """
    if not file.parent.is_dir():
        raise InputError(f"{file}: the folder {file.parent} does not exist: make it first")
    part: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".modcap-", delete=False) as open_:
            part = Path(open_.name)
            open_.write(data)
        part.chmod(0o666 & ~_umask())
        part.replace(file)
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror}): give another") from None
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def _umask() -> int:
    """Of this process, which can be read only by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
