"""Runs modules one after another on many images, in batches, and keeps what they give."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modcap.core.errors import ModcapError

__all__ = ["BATCH", "Passes", "channels_last", "concatenate_to", "run", "run_batched"]

BATCH = 256  # images per forward pass without gradients, at most


@dataclass(frozen=True)
class Passes:
    """How many images go through modules at once, and where what they give lies.

    Products of matrices sum in another order for another number of images, so the last bits of
    results depend on ``images`` and ``gradients``; on ``limit`` they do not.

    Attributes:
        images: in a pass without gradients.
        gradients: in one with gradients; None is a whole batch.
        limit: bytes of a tensor of activations above which it lies in a file; None is none.
    """

    images: int = BATCH
    gradients: int | None = None
    limit: float | None = None


@torch.no_grad()
def run_batched(modules: Sequence[nn.Module], x: Tensor, passes: Passes | None = None) -> Tensor:
    """The output of ``modules`` one after another on x (N, ...), in batches."""
    if not modules:
        return x
    passes = passes or Passes()
    parts = (run(modules, part) for part in x.split(passes.images))
    return concatenate_to(parts, len(x), passes.limit)


def channels_last(x: Tensor) -> Tensor:
    """x with its channels innermost in memory, where convolutions are fastest."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def run(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    """The output of ``modules`` one after another on x (N, ...).

    Each module sees one memory format, wherever the walk began: others sum in another order, and
    a value that lies on the edge of a level then falls to the other side.
    """
    for module in modules:
        x = module(channels_last(x))
    return x


def concatenate_to(parts: Iterable[Tensor], count: int, limit: float | None = None) -> Tensor:
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
