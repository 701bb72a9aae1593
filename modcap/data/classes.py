"""Names of classes: they number the labels of a folder, and belong to the network that was trained.

A folder that lacks a class would number all later ones otherwise. So names are kept with what is
made of a network, and number its images wherever these lie.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from modcap.core import documents, files
from modcap.core.canonical import canonical
from modcap.core.errors import InputError
from modcap.data import image_folder

__all__ = ["check_count", "digest", "doubt", "of_json", "of_value", "read"]

_BYTES = 2**22
_MOST = 2**16
_COUNTED = re.compile(r"(?P<before>[^0-9]*)(?P<number>[0-9]{1,18})([^0-9].*)?", re.DOTALL)


def read(path: Path) -> tuple[str, ...]:
    """The names in a file (a line each, or a list in JSON, also under ``classes``, as in a report),
    or those of the class folders in a directory, or in its ``train``.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    name = f"--classes {path}"
    if path.is_dir():
        train = path / "train"
        return _validated(image_folder.names(train if train.is_dir() else path), name)
    if path.suffix != ".json":
        text = files.read(path, name, _BYTES).decode("utf-8-sig", "replace")
        return _validated([line.strip() for line in text.splitlines() if line.strip()], name)
    return of_json(path, name)


def of_json(path: Path, name: str) -> tuple[str, ...]:
    """The names in a list, also under ``classes``; messages call the file ``name``."""
    return of_value(documents.read(path, name, _BYTES), name)


def of_value(found: object, name: str) -> tuple[str, ...]:
    """The same, of what was read already."""
    return _validated(found.get("classes") if isinstance(found, dict) else found, name)


def _validated(found: object, name: str) -> tuple[str, ...]:
    """``found`` as names of classes.

    Raises:
        InputError: it is none, or names one twice.
    """
    listed = found if isinstance(found, list) else []
    good = all(isinstance(one, str) for one in listed) and len(set(map(str, listed))) == len(listed)
    if not listed or not good or len(listed) > _MOST:
        raise InputError(f"{name}: give the names of all classes in their order, each once")
    return tuple(map(str, listed))


def digest(classes: Sequence[str]) -> str:
    """sha256 of names and their order."""
    return sha256(canonical(list(classes))).hexdigest()


def check_count(classes: Sequence[str] | None, outputs: int, where: str) -> None:
    """Refuses names of another number of classes than the network has: they cannot number its own.

    Raises:
        InputError: that is so.
    """
    if classes is not None and len(classes) != outputs:
        more = (
            "remove folders that are none"
            if len(classes) > outputs
            else "add a folder, which may be empty, for each class that lacks one"
        )
        raise InputError(
            f"{where} names {len(classes)} classes, and the network has {outputs}: which is which "
            f"is not known; {more}, or list all with --classes FILE; images without labels lie "
            f"right in the folder"
        )


def doubt(classes: Sequence[str] | None) -> str | None:
    """What may be wrong with a numbering by names, where it may be."""
    counted = [_COUNTED.fullmatch(name) for name in classes or ()]
    numbers = {match[0]: int(match["number"]) for match in counted if match}
    same = len({match["before"] for match in counted if match}) == 1
    if not classes or not same or len(numbers) < len(classes):
        return None
    natural = sorted(classes, key=numbers.__getitem__)
    other = [n for n, (one, two) in enumerate(zip(classes, natural, strict=True)) if one != two]
    if not other:
        return None
    said = ", ".join(f"{classes[n]} is class {n}" for n in other[:2])
    return (
        f"class folders are called by numbers, and sorted as text: {said}; if the network counts "
        f"otherwise, put zeros in front, or --classes FILE"
    )
