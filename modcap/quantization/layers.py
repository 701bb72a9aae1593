"""The two parts of a module with quantizers: quantized activations and quantized weights.

Every tensor that a weight layer consumes is quantized once, in front of all of its consumers, so
the shortcut of a residual block sees what its convolution sees. A module owns the quantizers of
its weights and of the values that it consumes, its input among them: all of its state is local.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from modcap.quantization.affine import dequantize, levels, quantize
from modcap.quantization.fake_quantize import FakeQuantize
from modcap.quantization.scale_search import search_scale

__all__ = [
    "BFLOAT16_BITS",
    "ActivationQuantizer",
    "Bits",
    "LearnedIntegers",
    "QuantLayer",
    "bernoulli_mask",
]

BFLOAT16_BITS = 6
"""Bits whose levels bfloat16, with 8 significant ones, still tells apart well."""


class Bits(NamedTuple):
    """Bit-widths of one weight layer and of its input."""

    weight: int
    activation: int


def bernoulli_mask(like: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    """A mask with the shape and memory format of ``like``: 1 with ``probability`` (to 1/256).

    One 64-bit random number serves eight elements.
    """
    mask = torch.empty_like(like)
    threshold = round(256 * probability)
    if threshold == 0:
        return mask.zero_()
    words = torch.empty((mask.numel() + 7) // 8, dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None, generator=generator)
    octets = words.view(torch.uint8)[: mask.numel()]
    mask.as_strided((mask.numel(),), (1,)).copy_(octets <= threshold - 1)
    return mask


class ActivationQuantizer(nn.Module):
    """Per-tensor affine quantization with a learned scale.

    ``enabled`` False passes values through; ``quantize_probability`` below 1 leaves each element
    unquantized with the remaining probability (QDrop, eq. 8), drawn from ``generator``.
    """

    scale: nn.Parameter
    zero_point: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("zero_point", torch.zeros(()))
        self._range = 0.0, float(levels(bits))
        self.enabled = True
        self.quantize_probability = 1.0
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return x
        if not torch.is_grad_enabled():
            return torch.clamp_(torch.round(x / self.scale), *self._range).mul_(self.scale)
        if self.bits > BFLOAT16_BITS:  # such as those of the first and the last layer
            x = x.float()
        keep = None
        if self.quantize_probability < 1:
            keep = bernoulli_mask(x, self.quantize_probability, self.generator)
        fake: Tensor = FakeQuantize.apply(  # type: ignore[no-untyped-call]
            x, self.scale, *self._range, keep
        )
        return fake

    def set(self, scale: Tensor, zero_point: Tensor) -> None:
        """Takes scale and zero point, each a scalar."""
        self.scale.data.copy_(scale)
        self.zero_point.copy_(zero_point)
        low = -float(zero_point)  # numbers: clamping to tensors takes six times as long
        self._range = low, low + levels(self.bits)

    def calibrate(self, values: Tensor, p: float) -> None:
        """Sets scale and zero point by the search of :func:`search_scale` on ``values``."""
        scale, zero = search_scale(values.reshape(1, -1), self.bits, p)
        self.set(scale[0], zero[0])


class LearnedIntegers(nn.Module):
    """The integers of a weight while they are learned (:mod:`modcap.ptq.rounding` has them).

    Attributes:
        variable: what learns.
    """

    variable: nn.Parameter

    @abstractmethod
    def forward(self) -> Tensor:
        """The integers of this step, as floats of the weight's shape; gradients reach
        ``variable``."""

    @abstractmethod
    def rounded(self) -> Tensor:
        """The integers that were learned, as floats."""


class QuantLayer(nn.Module):
    """A convolution or linear layer whose weight is quantized per output channel.

    It computes with the weight in full precision, until :meth:`freeze` or :meth:`restore` makes it
    hard: then ``integers`` hold the weight, and ``layer`` its float image. While it learns,
    whatever of these is not None has variables: ``learned_integers``, ``log_scale_offset`` (the
    logarithm of a factor for each channel's scale) and ``bias``.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, layer: nn.Module, bits: int) -> None:
        super().__init__()
        self.layer = layer
        self.bits = bits
        weight = self.weight
        self.axis = 1 if getattr(layer, "transposed", False) else 0
        channels = weight.shape[self.axis]
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("zero_point", torch.zeros(channels))
        self.learned_integers: LearnedIntegers | None = None
        self.log_scale_offset: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        self.integers: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        return cast(Tensor, self.layer.weight)

    @property
    def fan_in(self) -> int:
        """Weights of each channel."""
        return self.weight.numel() // len(self.scale)

    def per_channel_view(self, values: Tensor) -> Tensor:
        """``values`` (channels,) in the shape that broadcasts against the weight."""
        shape = [1] * self.weight.ndim
        shape[self.axis] = -1
        return values.reshape(shape)

    def calibrate(self, p: float) -> None:
        """Searches scale and zero point of each output channel."""
        rows = self.weight.detach().transpose(0, self.axis).flatten(1)
        scale, zero = search_scale(rows, self.bits, p)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero)

    def learn_scales(self) -> None:
        """Creates variables of the scales."""
        self.log_scale_offset = nn.Parameter(torch.zeros_like(self.scale))

    def learn_bias(self) -> None:
        """Creates a variable of the bias, where there is one."""
        if getattr(self.layer, "bias", None) is not None:
            self.bias = nn.Parameter(cast(Tensor, self.layer.bias).detach().clone())

    def trained_weight(self) -> Tensor:
        """The weight as its variables make it."""
        scale = self.per_channel_view(self.scale)
        factor = None
        if self.log_scale_offset is not None:
            factor = self.per_channel_view(torch.exp(self.log_scale_offset))
        if self.learned_integers is None:
            return self.weight if factor is None else self.weight * factor
        scale = scale if factor is None else scale * factor
        return dequantize(self.learned_integers(), scale, self.per_channel_view(self.zero_point))

    def freeze(self) -> None:
        """Rounds to integers; afterwards ``layer`` computes with their float image."""
        if self.learned_integers is not None:
            q = self.learned_integers.rounded()
        elif self.integers is not None:
            q = self.integers
        else:
            scale, zero = (self.per_channel_view(x) for x in (self.scale, self.zero_point))
            q = quantize(self.weight.detach(), scale, zero, self.bits)
        scale = self.scale
        if self.log_scale_offset is not None:
            scale = (scale * torch.exp(self.log_scale_offset.detach())).contiguous()
        bias = None if self.bias is None else self.bias.detach()
        self.restore(q.to(torch.uint8), scale, self.zero_point, bias)

    def restore(
        self, integers: Tensor, scale: Tensor, zero_point: Tensor, bias: Tensor | None
    ) -> None:
        """Makes the layer hard, with the given integers, scale, zero point and bias."""
        self.integers, self.scale, self.zero_point = integers, scale, zero_point
        self.learned_integers = self.log_scale_offset = self.bias = None
        scale, zero = (self.per_channel_view(x) for x in (scale, zero_point))
        image = dequantize(integers.float(), scale, zero)
        self.layer.weight = nn.Parameter(image, requires_grad=False)
        if bias is not None:
            self.layer.bias = nn.Parameter(bias, requires_grad=False)

    def rescale(self, factor: Tensor, shift: Tensor | None) -> None:
        """Makes its output z, in the hard state, ``factor`` z + ``shift``, each (channels,)."""
        assert self.integers is not None
        bias = cast("Tensor | None", self.layer.bias)
        if bias is not None:
            bias = bias * factor + (0 if shift is None else shift)
        self.restore(self.integers, self.scale * factor, self.zero_point, bias)

    def forward(self, x: Tensor) -> Tensor:
        state: dict[str, Tensor] = {}
        if self.learned_integers is not None or self.log_scale_offset is not None:
            state["weight"] = self.trained_weight()
        if self.bias is not None:
            state["bias"] = self.bias
        if not state:
            return cast(Tensor, self.layer(x))
        return cast(Tensor, functional_call(self.layer, state, (x,)))
