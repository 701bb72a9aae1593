"""The library as one file that a registered version carries.

No index has the very code that made a version, and one that has something of that name may have
somebody else's. So a version brings its own: pure Python, which is imported from the archive.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

from modcap import core

__all__ = ["write_library"]

_OF_SERVERS = ("tasks", "flows", "infra")
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # equal code, equal bytes


def write_library(file: Path) -> None:
    """Writes ``modcap`` without what runs it on servers, as a zip archive."""
    root = Path(core.__file__).parents[1]
    with zipfile.ZipFile(file, "w") as archive:
        for source in _sources(root):
            name = source.relative_to(root.parent).as_posix()
            entry = zipfile.ZipInfo(name, _LONG_AGO)
            archive.writestr(entry, source.read_bytes(), zipfile.ZIP_DEFLATED)


def _sources(root: Path) -> Iterator[Path]:
    for source in sorted(root.rglob("*.py")):
        if source.relative_to(root).parts[0] not in _OF_SERVERS:
            yield source
