"""Images of natural size, made of the photographs and cut-out objects in Debian's packages.

A third are crops of photographs, the others objects laid on such crops. Files are divided by name
into those that calibration images and those that test images are made of, so that nothing of a
test image was calibrated on. It is no ImageNet, and there are no labels: networks are compared
with their own answers in full precision.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGES = (
    "gnome-backgrounds",
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
    "mate-backgrounds",
    "palapeli-data",
    "plasma-workspace-wallpapers",
    "tuxpaint-stamps-default",
    "ukui-wallpapers",
)
_OBJECTS = ("animals", "clothes", "food", "hobbies", "household", "plants", "sports", "vehicles")
_DRAWN = ("cartoon", "toys", "plastic", "symbols", "doc", "icons", "screenshot", "abstract")
_LEAST = 700  # pixels of a photograph, on its shorter side
_FLAT = 4.0  # mean difference of neighbouring pixels below which a crop shows nothing
_TEST = 0.3  # of the files
_LONGEST = 2048  # pixels of a photograph that is kept in memory, on its longer side


def unpack(home: Path) -> Path:
    """Downloads the packages, and unpacks them without installing anything."""
    archives, unpacked = home / "archives", home / "unpacked"
    archives.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if (unpacked / package).exists():
            continue
        if not list(archives.glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "download", "--quiet", package], cwd=archives, check=True)
        (archive,) = archives.glob(f"{package}_*.deb")
        partly = unpacked / f".{package}"
        partly.mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg", "-x", str(archive), str(partly)], check=True)
        partly.rename(unpacked / package)
    return unpacked


def make(unpacked: Path, role: str, count: int, size: int, seed: int) -> np.ndarray:
    """``count`` images (N, 3, size, size), uint8, of the files of ``role``, calibration or test."""
    photographs = [f for f in _photographs(unpacked) if _role(f) == role]
    objects = [f for f in _objects(unpacked) if _role(f) == role]
    random = np.random.default_rng([seed, role == "test"])
    images = np.empty((count, 3, size, size), np.uint8)
    for number in range(count):
        crop = _crop(photographs, size, random)
        if number % 3:
            crop = _with_object(crop, objects, random)
        images[number] = np.asarray(crop, np.uint8).transpose(2, 0, 1)
    return images


def _photographs(unpacked: Path) -> list[Path]:
    """One file of each photograph: sizes of a wallpaper lie in one folder, of a name of digits."""
    found: dict[tuple[Path, str], Path] = {}
    for file in sorted(unpacked.rglob("*")):
        if "tuxpaint" in str(file) or file.suffix not in (".jpg", ".jpeg", ".png", ".webp"):
            continue
        drawn = any(word in str(file.relative_to(unpacked)).lower() for word in _DRAWN)
        if not drawn and min(Image.open(file).size) >= _LEAST:
            name = "" if file.stem[:1].isdigit() else file.stem
            found.setdefault((file.parent, name), file)
    return list(found.values())


def _objects(unpacked: Path) -> list[Path]:
    """Photographs of single things, transparent around them."""
    stamps = unpacked / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    files = [file for folder in _OBJECTS for file in sorted((stamps / folder).rglob("*.png"))]
    return [f for f in files if not any(word in str(f.relative_to(stamps)) for word in _DRAWN)]


def _role(file: Path) -> str:
    """By the file's name alone; those in folders of their own have it from the folder."""
    name = "/".join(file.parts[-4:])
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    return "test" if share < _TEST else "calibration"


def _crop(files: Sequence[Path], size: int, random: np.random.Generator) -> Image.Image:
    """A square out of a photograph, from a fifth to all of its shorter side, maybe mirrored."""
    while True:
        photograph = _opened(files[random.integers(len(files))])
        shorter = min(photograph.size)
        side = int(random.uniform(max(0.2, size / shorter / 2), 1) * shorter)
        left, top = (random.integers(length - side + 1) for length in photograph.size)
        crop = photograph.resize((size, size), 2, (left, top, left + side, top + side))
        if random.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if np.abs(np.diff(np.asarray(crop, np.float32), axis=1)).mean() > _FLAT:
            return crop


def _with_object(
    background: Image.Image, files: Sequence[Path], random: np.random.Generator
) -> Image.Image:
    """The background with an object on it, half of its size to all of it."""
    found, size = _opened(files[random.integers(len(files))]), background.size[0]
    scale = random.uniform(0.7, 1) * size / max(found.size)
    found = found.resize([max(1, round(length * scale)) for length in found.size], 2)
    if random.random() < 0.5:
        found = found.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left, top = (int(random.integers(size - length + 1)) for length in found.size)
    background = background.copy()
    background.paste(found.convert("RGB"), (left, top), found.getchannel("A"))
    return background


@cache
def _opened(file: Path) -> Image.Image:
    """A photograph as RGB, an object with its transparency."""
    image = Image.open(file)
    if "tuxpaint" in str(file):
        return image.convert("RGBA")
    image = image.convert("RGB")
    image.thumbnail((_LONGEST, _LONGEST))
    return image
