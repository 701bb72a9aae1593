"""What a weight layer sees: mean and second moment of the vectors that its weights multiply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modcap.graph.forward import Passes, run
from modcap.quantization.layers import QuantLayer
from modcap.quantization.scale_search import spread

__all__ = ["Moments", "measure_inputs"]

_BLOCK = 1024  # weights of a channel that are seen together, at most
_IMAGES = 16  # that inputs are measured on, at least
_WANTED = 32  # vectors per weight of a channel
_POSITIONS = 1024  # of an image that are looked at, at least, where there are as many
_VECTORS = 16 << 20  # bytes of vectors at once


@dataclass(frozen=True)
class Moments:
    """Of the inputs of a layer, for each block of weights that are seen together: those of a group
    of a convolution, or equal parts of these where they are more than 1,024.

    Attributes:
        mean: (blocks, n).
        second: E x xᵀ, (blocks, n, n).
        count: of the vectors that were seen.
    """

    mean: Tensor
    second: Tensor
    count: int

    def form(self, centred: bool) -> Tensor:
        """The covariance, or the second moment, (blocks, n, n): positive definite, and a little
        smaller between weights than measured, since the vectors are a sample."""
        full = self.second
        if centred:
            full = full - self.mean[:, :, None] * self.mean[:, None, :]
        own = full.diagonal(dim1=1, dim2=2).clamp(min=0)
        own = own + 1e-4 * own.mean(1, keepdim=True) + 1e-9 * own.mean() + 1e-30
        weights = full.shape[1]
        shared = full * (self.count / (self.count + weights))
        same = torch.eye(weights, dtype=torch.bool, device=full.device)
        return torch.where(same, own[:, :, None], shared)


def measure_inputs(
    modules: Sequence[nn.Module], layer: QuantLayer, x: Tensor, passes: Passes
) -> Moments | None:
    """Runs ``modules`` on as many of the images x (N, ...) as it takes to know what ``layer`` sees.

    None for a layer whose weights multiply no such vectors, as in a transposed convolution.
    """
    if not isinstance(layer.layer, (nn.Conv2d, nn.Linear)):
        return None
    sums = _Sums(layer)
    handle = layer.register_forward_pre_hook(lambda _, args: sums.add(args[0]))
    try:
        done = 0
        while done < len(x) and sums.images_missing(done):
            number = min(sums.images_missing(done), passes.images, len(x) - done)
            run(modules, x[spread(len(x), done + number)[done:]])
            done += number
    finally:
        handle.remove()
    return sums.moments if sums.count else None


class _Sums:
    """Adds up what a layer sees, call by call."""

    def __init__(self, layer: QuantLayer) -> None:
        self.layer, self.fan_in = layer.layer, layer.fan_in
        self.groups = cast(int, getattr(self.layer, "groups", 1))
        self.blocks = self.groups * _parts(self.fan_in)
        self.count = 0
        self._sums: tuple[Tensor, Tensor] | None = None

    def images_missing(self, done: int) -> int:
        """How many more images there have to be, after ``done`` gave what was counted."""
        if not self.count:
            return max(0, _IMAGES - done)
        return max(0, -(-(_WANTED * self.fan_in - self.count) * done // self.count))

    def add(self, x: Tensor) -> None:
        for part in x.split(self._at_once(x)):
            vectors = self._vectors(part)  # (blocks, n, vectors)
            self.count += vectors.shape[2]
            new = vectors.sum(2), vectors @ vectors.transpose(1, 2)
            old = self._sums
            self._sums = new if old is None else (old[0] + new[0], old[1] + new[1])

    @property
    def moments(self) -> Moments:
        assert self._sums is not None
        mean, second = (total / self.count for total in self._sums)
        return Moments(mean, second, self.count)

    def _at_once(self, x: Tensor) -> int:
        channels = x.shape[1] if isinstance(self.layer, nn.Conv2d) else x.shape[-1]
        positions = min(x[0].numel() // channels, self._few)
        return max(1, _VECTORS // (4 * self.fan_in * self.groups * positions))

    @property
    def _few(self) -> int:
        """Positions of an image that are looked at, at most."""
        return max(_POSITIONS, 4 * _WANTED * self.fan_in // _IMAGES)

    def _vectors(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Conv2d):
            vectors = _patches(x.float(), self.layer, self._few)
        else:
            vectors = x.float().reshape(-1, x.shape[-1]).T
        return vectors.reshape(self.blocks, -1, vectors.shape[1])


def _parts(fan_in: int) -> int:
    """Into how many equal parts the weights of a channel fall."""
    return next(n for n in range(1, fan_in + 1) if fan_in % n == 0 and fan_in // n <= _BLOCK)


def _patches(x: Tensor, layer: nn.Conv2d, few: int) -> Tensor:
    """What the kernel of ``layer`` sees of x (N, C, H, W) at ``few`` positions of each image, even
    over all: (C * kernel height * kernel width, N * positions)."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode).contiguous()
    kernel, strides = layer.kernel_size, x.stride()
    reach = [d * (k - 1) for d, k in zip(layer.dilation, kernel, strict=True)]
    height, width = (
        (length - more - 1) // step + 1
        for length, more, step in zip(x.shape[2:], reach, layer.stride, strict=True)
    )
    steps = [n * each for n, each in zip(strides[2:], layer.stride, strict=True)]
    inside = [n * each for n, each in zip(strides[2:], layer.dilation, strict=True)]
    windows = x.as_strided((*x.shape[:2], height, width, *kernel), (*strides[:2], *steps, *inside))
    count = height * width
    places = spread(count, few) if count > few else torch.arange(count)
    places = places.to(x.device)
    found = windows[:, :, places // width, places % width]  # (N, C, positions, *kernel)
    return found.permute(1, 3, 4, 0, 2).reshape(x.shape[1] * kernel[0] * kernel[1], -1)
