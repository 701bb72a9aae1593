"""Activations of the calibration images: in a file where they are large, kept between two jobs."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Hashable, Iterable

import torch
from torch import Tensor

from modcap.byte_cache import ByteCache
from modcap.errors import ModcapError
from modcap.quantized import channels_last

__all__ = ["CACHE", "Activations", "gather"]

CACHE = 1 << 30
"""Bytes of activations that a worker keeps between two jobs, at most."""


def gather(parts: Iterable[Tensor], count: int, limit: float | None = None) -> Tensor:
    """``parts`` (n, ...) of float32 one after another: (count, ...), images channels innermost.

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
    assert done == count
    return whole


def _empty(like: Tensor, count: int, limit: float) -> Tensor:
    shape = count, *like.shape[1:]
    strides = channels_last(torch.empty(shape, device="meta")).stride()
    if 4 * math.prod(shape) <= limit:
        return torch.empty_strided(shape, strides, dtype=torch.float32, device=like.device)
    return _in_file(math.prod(shape)).as_strided(shape, strides)


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
        return torch.from_file(file.name, shared=True, size=numbers, dtype=torch.float32)


class Activations:
    """The activations last seen at the boundaries of groups: a cache, never stored or shipped.

    A job behind a prefix goes on from the nearest boundary that is kept, instead of running the
    whole prefix again; the result is the same to the bit.
    """

    def __init__(self, limit: int = CACHE) -> None:
        self._kept: ByteCache[Tensor] = ByteCache(limit)

    def get(self, key: Hashable) -> Tensor | None:
        return self._kept.get(key)

    def put(self, key: Hashable, x: Tensor, bound: int | None = None) -> None:
        """Keeps x; the oldest go when the limit, or ``bound`` bytes if that is less, are full."""
        self._kept.put(key, x, x.nbytes, bound)

    def clear(self) -> None:
        """Keeps none."""
        self._kept.trim(0)
