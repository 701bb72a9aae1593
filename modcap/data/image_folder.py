"""Reads a directory of image files with one folder per class, as torchvision's ImageFolder does,
or without such folders, and so without labels.

By hand: the library needs no torchvision, and opens files of others within bounds.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modcap.core.errors import InputError
from modcap.data import image_file, large_array
from modcap.data.preprocess import Preprocess

__all__ = ["decoded", "listed", "names", "splits", "unsorted"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
_TRAINING, _EVALUATION = "train", ("val", "valid", "validation", "test")
_SPLIT = re.compile(r"(train|val|test|eval|dev|hold).*", re.IGNORECASE)
_LEFT_BEHIND = {  # by archivers, servers of files, and other tools, in small letters
    *("__macosx", "_macosx", "__pycache__", "cvs", "lost+found"),
    *("$recycle.bin", "recycler", "system volume information"),
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot"),
    *("network trash folder", "temporary items"),
}
_NAMED = 3  # classes to name in an error


def splits(folder: Path) -> tuple[Path, Path] | None:
    """The folders of training and of evaluation in ``folder``; None where it is not divided.

    Where there are several to evaluate on, it is ``val``.

    Raises:
        InputError: there are several and no ``val``, or one without the other.
    """
    train = folder / _TRAINING
    tests = [folder / name for name in _EVALUATION if (folder / name).is_dir()]
    if train.is_dir() and tests:
        if len(tests) > 1 and tests[0].name != _EVALUATION[0]:
            found = " and ".join(f"{test.name}/" for test in tests)
            raise InputError(
                f"data {folder} has {found} beside train/: call the one to evaluate on val/"
            )
        return train, tests[0]
    for alone in (train, *tests):
        if alone.is_dir() and names(alone):
            other = _EVALUATION[0] if alone == train else _TRAINING
            raise InputError(
                f"data {folder} has {alone.name}/ and no {other}/: give both, or {alone} alone"
            )
    _check_no_splits(folder)
    return None


def _check_no_splits(folder: Path) -> None:
    """Refuses splits that are called otherwise, which would be taken for classes.

    Raises:
        InputError: all folders are called like splits, and hold folders of classes.
    """
    found = names(folder)
    if len(found) < 2 or not all(map(_SPLIT.fullmatch, found)):
        return
    if all(names(folder / name) and not _own_images(folder / name) for name in found):
        raise InputError(
            f"data {folder} has {' and '.join(f'{name}/' for name in found[:_NAMED])}, which hold "
            f"folders of classes: call them {_TRAINING}/ and {_EVALUATION[0]}/"
        )


def _own_images(folder: Path) -> bool:
    """Whether images lie in the folder itself."""
    return any(entry.suffix.lower() in _SUFFIXES for entry in folder.iterdir() if entry.is_file())


def listed(folder: Path, classes: Sequence[str], whose: str) -> list[tuple[Path, int]]:
    """Image files below ``folder`` with their class, sorted by its name and theirs.

    Args:
        classes: their names; a class's number is its place among them.
        whose: what messages say that these are.

    Raises:
        InputError: there is no image, or one of a class that has no number.
    """
    named = [(file, name) for name in names(folder) for file in _images(folder / name)]
    numbers = {_composed(name): number for number, name in enumerate(classes)}
    unknown = sorted({name for _, name in named if _composed(name) not in numbers})
    if unknown:
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        raise InputError(
            f"data {folder} has images of {', '.join(unknown[:_NAMED])}{more}, and {whose} no "
            f"such class: name folders alike in both; a folder may be empty"
        )
    if not named:
        raise InputError(
            f"data {folder} has no images: give a directory of images, or one with a folder of "
            f"images per class"
        )
    return [(file, numbers[_composed(name)]) for file, name in named]


def _composed(name: str) -> str:
    """Letters with accents in one form: systems of files write them in two."""
    return unicodedata.normalize("NFC", name)


def unsorted(folder: Path) -> list[Path]:
    """Image files right in ``folder``, sorted, where it has no folders of classes; else none."""
    return [] if names(folder) else _images(folder)


def names(folder: Path) -> list[str]:
    """The classes that there are folders of, sorted."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and _shown(entry.name))


def _images(folder: Path) -> list[Path]:
    """Files that are called images, at any depth; a folder is none, whatever it is called."""
    found = []
    for base, folders, names in os.walk(folder):
        folders[:] = filter(_shown, folders)
        found += [
            Path(base, name)
            for name in filter(_shown, names)
            if Path(name).suffix.lower() in _SUFFIXES
        ]
    return sorted(found)


def _shown(name: str) -> bool:
    """Whether people mean it: not what their tools leave behind, such as ``.ipynb_checkpoints``."""
    return not name.startswith(".") and name.lower() not in _LEFT_BEHIND


def decoded(files: Sequence[Path], preprocess: Preprocess) -> NDArray[np.uint8]:
    """Images (N, C, H, W) uint8, resized and cropped.

    Raises:
        InputError: a file is no image, or is too small or of another size than the others.
    """
    images: NDArray[np.uint8] | None = None
    for index, file in enumerate(files):
        pixels = image_file.pixels(file, preprocess)
        if images is None:
            images = large_array.empty((len(files), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            raise InputError(
                f"image {file} is {pixels.shape[1:]} and others {images.shape[2:]} (height, "
                f"width): pass --preprocess with resize=… and crop=…"
            )
        images[index] = pixels
    if images is None:
        images = np.empty((0, preprocess.channels, 1, 1), np.uint8)
    return images
