"""Runs modules one after another on many images, in batches, and keeps what they give."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from modcap.core.errors import ModcapError

__all__ = ["BATCH", "channels_last", "concatenate_to", "run", "run_batched"]


BATCH = 256  # images per forward pass where no gradient is needed


@torch.no_grad()
def run_batched(modules: Sequence[nn.Module], x: Tensor, limit: float | None = None) -> Tensor:
    """The output of ``modules`` one after another on x (N, ...), in batches; of more than
    ``limit`` bytes, in a file."""
    if not modules:
        return x
    return concatenate_to((run(modules, part) for part in x.split(BATCH)), len(x), limit)


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
