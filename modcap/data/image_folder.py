"""Reads a directory of image files with one folder per class, as torchvision's ImageFolder does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modcap.core.errors import InputError
from modcap.core.messages import first_line
from modcap.data.preprocess import Preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["decoded", "listed", "splits"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
_MODES = {1: "L", 3: "RGB"}
_TRAINING, _EVALUATION = "train", ("val", "valid", "validation", "test")
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
        if alone.is_dir() and _classes(alone):
            other = _EVALUATION[0] if alone == train else _TRAINING
            raise InputError(
                f"data {folder} has {alone.name}/ and no {other}/: give both, or {alone} alone"
            )
    return None


def listed(folder: Path, trained: Path | None = None) -> list[tuple[Path, int]]:
    """Image files below ``folder`` with their class, sorted; a class's number is the rank of its
    folder's name, among those in ``trained`` where that is given.

    Raises:
        InputError: there is none, or one of a class that ``trained`` lacks.
    """
    named = [
        (file, name)
        for name in _classes(folder)
        for file in sorted((folder / name).rglob("*"))
        if file.suffix.lower() in _SUFFIXES
    ]
    numbers = {name: number for number, name in enumerate(_classes(trained or folder))}
    unknown = sorted({name for _, name in named} - numbers.keys())
    if unknown:
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        raise InputError(
            f"data {folder} has images of {', '.join(unknown[:_NAMED])}{more}, and {trained} no "
            f"such folder: name classes alike in both; a folder may be empty"
        )
    files = [(file, numbers[name]) for file, name in named]
    if not files:
        raise InputError(
            f"data {folder} has no images: give a directory with one folder of images per class"
        )
    return files


def _classes(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def decoded(
    files: Sequence[tuple[Path, int]], preprocess: Preprocess
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, C, H, W) uint8, resized and cropped, and labels (N,) int64.

    Raises:
        InputError: a file is no image, or is too small or of another size than the others.
    """
    labels = np.array([label for _, label in files], np.int64)
    images: NDArray[np.uint8] | None = None
    for index, (file, _) in enumerate(files):
        pixels = _pixels(file, preprocess)
        if images is None:
            images = np.empty((len(files), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            raise InputError(
                f"image {file} is {pixels.shape[1:]} and others {images.shape[2:]} (height, "
                f"width): pass --preprocess with resize=… and crop=…"
            )
        images[index] = pixels
    if images is None:
        images = np.empty((0, preprocess.channels, 1, 1), np.uint8)
    return images, labels


def _pixels(file: Path, preprocess: Preprocess) -> NDArray[np.uint8]:
    """(C, H, W) of one file."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise InputError("reading image files needs Pillow: run pip install pillow") from error
    mode = _MODES.get(preprocess.channels)
    if mode is None:
        raise InputError(
            f"image files have 1 or 3 channels, not {preprocess.channels}: use an .npz"
        )
    try:
        with Image.open(file) as opened:
            image = _cropped(_resized(opened.convert(mode), preprocess), preprocess.crop)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"image {file} cannot be read ({first_line(error)}): repair or remove it"
        ) from error
    pixels: NDArray[np.uint8] = np.atleast_3d(np.asarray(image, np.uint8)).transpose(2, 0, 1)
    return pixels


def _resized(image: Image, preprocess: Preprocess) -> Image:
    from PIL.Image import Resampling

    if preprocess.resize is None:
        return image
    shorter = min(image.size)
    width, height = (int(preprocess.resize * side / shorter) for side in image.size)
    method: Any = Resampling[preprocess.interpolation.upper()]
    return image.resize((width, height), method)


def _cropped(image: Image, crop: int | None) -> Image:
    if crop is None:
        return image
    if min(image.size) < crop:
        raise ValueError(f"{image.width} × {image.height} is smaller than crop={crop}")
    left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
    return image.crop((left, top, left + crop, top + crop))
