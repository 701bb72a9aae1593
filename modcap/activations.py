"""Activations of the calibration images: in a file where they are large, kept between two jobs."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Hashable, Iterable

import torch
from torch import Tensor

from modcap.errors import ModcapError
from modcap.quantized import channels_last

__all__ = ["Activations", "gather"]

_BYTES = 1 << 30  # of activations that a worker keeps


def gather(parts: Iterable[Tensor], count: int, limit: float | None = None) -> Tensor:
    """``parts`` (n, ...) of float32 one after another: (count, ...), channels innermost.

    Where that has more than ``limit`` bytes it lies in a temporary file, which is paged in as it
    is read and goes with the tensor.

    Raises:
        ModcapError: the folder of temporary files has no room for it.
    """
    whole: Tensor | None = None
    done = 0
    for part in parts:
        if whole is None:
            whole = _empty(part, count, math.inf if limit is None else limit)
        whole[done : done + len(part)] = part
        done += len(part)
    assert whole is not None
    return whole


def _empty(like: Tensor, count: int, limit: float) -> Tensor:
    one = channels_last(like[:1])
    shape = count, *one.shape[1:]
    if 4 * math.prod(shape) <= limit:
        return one.new_empty_strided(shape, one.stride())
    return _in_file(math.prod(shape)).as_strided(shape, one.stride())


def _in_file(numbers: int) -> Tensor:
    """As many float32, in a file without a name."""
    with tempfile.NamedTemporaryFile(prefix="modcap-activations-") as file:
        try:
            if sys.platform == "darwin":
                file.truncate(4 * numbers)
            else:
                os.posix_fallocate(file.fileno(), 0, 4 * numbers)
        except OSError as error:
            raise ModcapError(
                f"no room for {4 * numbers / 1e9:.1f} GB of activations in {tempfile.gettempdir()} "
                f"({error.strerror}): name a larger folder by TMPDIR, or take fewer calibration "
                "images or more activation_memory"
            ) from error
        return torch.from_file(file.name, shared=True, size=numbers)


class Activations:
    """The activations last seen at the boundaries of groups: a cache, never stored or shipped.

    A job behind a prefix goes on from the nearest boundary that is kept, instead of running the
    whole prefix again; the result is the same to the bit. The oldest go when ``limit`` bytes are
    full.
    """

    def __init__(self, limit: int = _BYTES) -> None:
        self._limit, self._size = limit, 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable) -> Tensor | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: Hashable, x: Tensor) -> None:
        if key in self._kept or x.nbytes > self._limit:
            return
        self._kept[key] = x
        self._size += x.nbytes
        while self._size > self._limit:
            self._size -= self._kept.popitem(last=False)[1].nbytes
