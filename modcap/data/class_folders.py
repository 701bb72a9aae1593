"""A directory of images, in one split or two: with one folder for each class, or without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modcap.data import image_folder
from modcap.data.images import Images, Split, split_of_one, split_of_two
from modcap.data.preprocess import Preprocess
from modcap.data.source import Source

__all__ = ["SOURCE"]


def _takes(spec: str) -> bool:
    return Path(spec).is_dir()


def _read(
    spec: str,
    split: Split,
    preprocess: Preprocess,
    limit: int | None,
    classes: Sequence[str] | None,
) -> Images:
    folder = Path(spec)
    train, test = image_folder.splits(folder) or (folder, folder)
    place = train if split == "calibration" else test
    found, names = _files(place, train, classes)
    divide = split_of_one if train == test else split_of_two
    chosen = [found[i] for i in divide(len(found), split)[:limit]]
    images = image_folder.decoded([file for file, _ in chosen], preprocess)
    labelled = names is not None
    labels = np.array([label for _, label in chosen], np.int64) if labelled else None
    read = Images(images, labels, str(folder), names)
    return read.marked(split, len(found)) if train == test else read


def _files(
    place: Path, train: Path, classes: Sequence[str] | None
) -> tuple[list[tuple[Path, int]], tuple[str, ...] | None]:
    """Image files of a split, each with the number of its class, and the names of classes; None
    where images lie there without folders of such."""
    if bare := image_folder.unsorted(place):
        return [(file, 0) for file in bare], None
    names = tuple(image_folder.names(train) if classes is None else classes)
    whose = str(train) if classes is None else "the network"
    return image_folder.listed(place, names, whose), names


SOURCE = Source("a directory of images, in a folder per class where that is known", _takes, _read)
