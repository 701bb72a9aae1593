"""Calibration images as people have them: one tensor, or batches of a DataLoader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from modcap.core.errors import InputError
from modcap.data.image_set import as_input

__all__ = ["Batches", "images_of"]

Batches = Iterable[object]
"""Batches of images (n, C, H, W), alone or before their labels, as a DataLoader gives them."""

_NO_BATCHES = (Tensor, np.ndarray, str, bytes, Mapping)


def images_of(given: Tensor | Batches, most: int) -> Tensor:
    """The images (N, C, H, W) in float32: all of a tensor; of batches the first ``most``, and no
    more batches are asked for than that takes.

    Raises:
        InputError: there are none, or they are no images.
    """
    if isinstance(given, _NO_BATCHES) or not isinstance(given, Iterable):
        return as_input(given)
    batches = list(_batches(given, most))
    if not batches:
        raise InputError("there are no batches of images: give some")
    sizes = {tuple(batch.shape[1:]) for batch in batches}
    if len(sizes) > 1:
        shapes = " and ".join(map(str, sorted(sizes)))
        raise InputError(f"batches hold images of shapes {shapes}: give all of one size")
    return torch.cat(batches)[:most]


def _batches(given: Batches, most: int) -> Iterator[Tensor]:
    left = most
    for batch in given:
        images = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
        found = as_input(images).detach().cpu()
        yield found
        left -= len(found)
        if left <= 0:
            return
