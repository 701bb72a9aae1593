"""Files and folders that nobody but their owner reads, and no other user could have put there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from modcap.core.errors import InputError

__all__ = ["close_to_others", "private_folder", "write_private"]


def private_folder(path: Path, what: str) -> Path:
    """``path`` as a folder of mode 0700, made where it is missing, tightened where it is looser.

    What lies in it keeps no permission for others either.

    Raises:
        InputError: it belongs to another user, is no folder, or cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = path.resolve()
        found = path.stat()
        if found.st_uid != os.getuid():
            raise InputError(
                f"{what} {path}: it belongs to another user, who could read and change what is "
                "in it: name a folder of your own"
            )
        if stat.S_IMODE(found.st_mode) != 0o700:
            path.chmod(0o700)
            close_to_others(path)
    except OSError as error:
        raise InputError(
            f"{what} {path}: cannot be made ({error.strerror}): name another folder"
        ) from None
    return path


def close_to_others(folder: Path) -> None:
    """Takes every permission of group and others from all that lies below ``folder``."""
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            file = os.path.join(root, name)  # noqa: PTH118
            mode = os.lstat(file).st_mode
            if not stat.S_ISLNK(mode) and mode & 0o077:
                os.chmod(file, stat.S_IMODE(mode) & 0o700)  # noqa: PTH101


def write_private(file: Path, text: str) -> None:
    """Writes ``text`` so that no one but the owner can ever read it."""
    draft = file.with_name(f"{file.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as opened:
        opened.write(text)
    draft.replace(file)
