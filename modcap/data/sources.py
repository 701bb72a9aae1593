"""Where calibration and test images come from. A new source is a file here, and a place in
:data:`SOURCES`.

A source of at most one split is divided: calibration draws from a pool, the first 2,048 images (at
most half) of a fixed permutation, and evaluation has the rest, in that order. A source with a
training split of its own gives a pool of it alone. So the two never share an image, and the same
source gives the same images on every machine.

What is measured of a place is every image (of one with two splits, of its test split), those of the
pool last, and left out where calibration drew from the same place.
"""

from __future__ import annotations

from collections.abc import Sequence

from modcap.core.errors import InputError
from modcap.data import class_folders, fashion_mnist, npz
from modcap.data.images import FLOOR, POOL, Images, Split, calibration, permutation
from modcap.data.preprocess import Preprocess
from modcap.data.source import Source

__all__ = [
    "FLOOR",
    "HELP",
    "POOL",
    "SOURCES",
    "Images",
    "Split",
    "calibration",
    "load",
    "permutation",
]

SOURCES: tuple[Source, ...] = (fashion_mnist.SOURCE, npz.SOURCE, class_folders.SOURCE)
"""The first that takes a text reads it."""

HELP = ", or ".join(source.help for source in SOURCES)


def load(
    spec: str,
    *,
    split: Split,
    preprocess: Preprocess,
    limit: int | None = None,
    classes: Sequence[str] | None = None,
) -> Images:
    """Reads images.

    Args:
        spec: ``fashion-mnist``, ``fashion-mnist:DIR``, a directory with one folder per class
            (below ``train`` and ``val``, ``valid``, ``validation`` or ``test`` where there are
            such; those of ``train`` number the classes), one with images alone, or an ``.npz`` of
            ``images`` (N, C, H, W; uint8 or float32) and, where they are known, ``labels`` (N,).
        split: ``calibration`` and ``evaluation`` share no image; ``all`` is a whole source of one
            split, or the test split of one that has two.
        preprocess: resize and crop apply to a folder of image files.
        limit: how many images of the split, the first of them, at most; others are not decoded.
        classes: names that number the folders of classes, in place of those that are found.

    Raises:
        InputError: there are no such images, or they do not fit ``preprocess``.
    """
    source = next((source for source in SOURCES if source.takes(spec)), None)
    if source is None:
        raise InputError(f"data {spec} does not exist: give {HELP}")
    images = source.read(spec, split, preprocess, limit, classes)
    channels = images.images.shape[1]
    if channels != preprocess.channels:
        raise InputError(
            f"images of {spec} have {channels} channels, the preprocessing is for "
            f"{preprocess.channels}: pass --preprocess with {channels} values of mean and std, or "
            f"data that the network was trained on"
        )
    preprocess.check_values(images.images, f"data {spec}")
    return images
