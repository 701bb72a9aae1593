"""A directory with one folder of images for each class, in one split or two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
    names = tuple(image_folder.names(train) if classes is None else classes)
    whose = str(train) if classes is None else "the network"
    place = train if split == "calibration" else test
    found = image_folder.listed(place, names, whose)
    divide = split_of_one if train == test else split_of_two
    chosen = [found[i] for i in divide(len(found), split)[:limit]]
    images, labels = image_folder.decoded(chosen, preprocess)
    read = Images(images, labels, str(folder), names)
    return read.marked(split, len(found)) if train == test else read


SOURCE = Source("a directory with one folder of images per class", _takes, _read)
