"""Pixels of one image file, of whatever mode, as one value of 0 to 255 per channel."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modcap.core import files
from modcap.core.errors import InputError
from modcap.core.messages import first_line
from modcap.data.preprocess import Preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["PIXELS", "pixels"]

PIXELS = 2**26
"""Pixels of an image, as stored and as resized, at most."""

_MODES = {1: "L", 3: "RGB"}
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "DIB", "GIF", "TIFF", "WEBP")  # none runs programs
_16_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_TO_8_BITS = 257  # 65,535 becomes 255


def pixels(file: Path, preprocess: Preprocess) -> NDArray[np.uint8]:
    """(C, H, W) of one file, resized and cropped.

    Raises:
        InputError: the file is no image, damaged, too large or too small, or of a range of values
            that it does not say.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise InputError("reading image files needs Pillow: run pip install pillow") from error
    mode = _MODES.get(preprocess.channels)
    if mode is None:
        raise InputError(
            f"image files have 1 or 3 channels, not {preprocess.channels}: use an .npz"
        )
    files.check_regular(file, f"image {file}")
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of metadata; sizes are checked here
            with Image.open(file, formats=_FORMATS) as opened:
                _check_size(*opened.size)
                image = _cropped(_resized(_converted(opened, mode), preprocess), preprocess.crop)
    except Exception as error:  # Pillow raises anything on a damaged file
        raise InputError(
            f"image {file} cannot be read ({first_line(error)}): repair or remove it"
        ) from error
    found: NDArray[np.uint8] = np.atleast_3d(np.asarray(image, np.uint8)).transpose(2, 0, 1)
    return found


def _check_size(width: int, height: int) -> None:
    if width * height > PIXELS:
        raise ValueError(f"{width} × {height} pixels, and {PIXELS:,} are the most that is read")


def _converted(image: Image, mode: str) -> Image:
    """As torchvision's loaders do it, but for what they clip: more than 8 bits per value."""
    from PIL.Image import fromarray

    if image.mode in _16_BITS or (image.mode == "I" and image.format in ("PNG", "PPM")):
        deep = np.asarray(image).astype(np.int64)
        image = fromarray(((deep + _TO_8_BITS // 2) // _TO_8_BITS).clip(0, 255).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"it has 32 bits per value (mode {image.mode}), of a range that is not known: save 8 "
            f"or 16, or give an .npz"
        )
    return image.convert(mode)


def _resized(image: Image, preprocess: Preprocess) -> Image:
    from PIL.Image import Resampling

    if preprocess.resize is None:
        return image
    shorter = min(image.size)
    width, height = (int(preprocess.resize * side / shorter) for side in image.size)
    if preprocess.aspect == "squash":
        width = height = preprocess.resize
    _check_size(width, height)
    method: Any = Resampling[preprocess.interpolation.upper()]
    return image.resize((width, height), method)


def _cropped(image: Image, crop: int | None) -> Image:
    if crop is None:
        return image
    if min(image.size) < crop:
        raise ValueError(f"{image.width} × {image.height} is smaller than crop={crop}")
    left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
    return image.crop((left, top, left + crop, top + crop))
