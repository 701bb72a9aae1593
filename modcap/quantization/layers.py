"""The two parts of a module with quantizers: quantized activations and quantized weights.

Every tensor that a weight layer consumes is quantized once, in front of all of its consumers, so
the shortcut of a residual block sees what its convolution sees. A module owns the quantizers of
its weights and of the values that it consumes, its input among them: all of its state is local.

Not ``torch.nn.utils.parametrize``: an integer bias takes the scales of weight and input at once.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from modcap.quantization.affine import dequantize, levels, quantize
from modcap.quantization.bits import BFLOAT16_BITS
from modcap.quantization.fake_quantize import FakeQuantize, PowerOfTwo
from modcap.quantization.scale_search import search_scale
from modcap.quantization.scheme import ANY, Grid

__all__ = [
    "ActivationQuantizer",
    "LearnedIntegers",
    "QuantLayer",
    "bernoulli_mask",
    "integer_bias",
]

_LARGEST_BIAS = 2.0**31 - 128  # the last float32 below 2^31


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

    def __init__(self, bits: int, grid: Grid = ANY) -> None:
        super().__init__()
        self.bits = bits
        self.grid = grid
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("zero_point", torch.zeros(()))
        self._range = 0.0, float(levels(bits))
        self.enabled = True
        self.quantize_probability = 1.0
        self.generator: torch.Generator | None = None

    @property
    def step(self) -> Tensor:
        """The scale as it is used: the nearest that the grid has."""
        return _on_grid(self.scale, self.grid)

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return x
        step = self.step
        if not torch.is_grad_enabled():
            return torch.clamp_(torch.round(x / step), *self._range).mul_(step)
        if self.bits > BFLOAT16_BITS:  # such as those of the first and the last layer
            x = x.float()
        keep = None
        if self.quantize_probability < 1:
            keep = bernoulli_mask(x, self.quantize_probability, self.generator)
        fake: Tensor = FakeQuantize.apply(  # type: ignore[no-untyped-call]
            x, step, *self._range, keep
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
        scale, zero = search_scale(values.reshape(1, -1), self.bits, p, self.grid)
        self.set(scale[0], zero[0])

    def settle(self) -> None:
        """Ends the learning of the scale: it becomes what is used."""
        self.scale.data.abs_()
        self.scale.data.copy_(self.step.detach())
        self.scale.grad = None


class LearnedIntegers(nn.Module):
    """The integers of a weight while they are learned (:mod:`modcap.ptq.rounding` has them).

    Attributes:
        variable: what learns.
        factor: by which the scale of each channel has changed, where it changes by powers of two:
            integers then follow, so that weights stay where they are. None is not at all.
        follows_scale: whether they do.
    """

    variable: nn.Parameter
    factor: Tensor | None = None
    follows_scale: ClassVar[bool] = False

    @abstractmethod
    def forward(self) -> Tensor:
        """The integers of this step, as floats of the weight's shape; gradients reach
        ``variable``."""

    @abstractmethod
    def rounded(self) -> Tensor:
        """The integers that were learned, as floats."""


def _on_grid(scale: Tensor, grid: Grid) -> Tensor:
    if not grid.power_of_two:
        return scale
    power: Tensor = PowerOfTwo.apply(scale)  # type: ignore[no-untyped-call]
    return power


def integer_bias(bias: Tensor, unit: Tensor) -> Tensor:
    """``bias`` (channels,) as 32-bit integers, as floats; ``unit`` (channels,) is what one stands
    for."""
    return torch.clamp(torch.round(bias / unit), -_LARGEST_BIAS, _LARGEST_BIAS)


class QuantLayer(nn.Module):
    """A convolution or linear layer whose weight is quantized per output channel.

    It computes with the weight in full precision, until :meth:`freeze` or :meth:`restore` makes it
    hard: then ``integers`` hold the weight, and ``layer`` its float image. While it learns,
    whatever of these is not None has variables: ``learned_integers``, ``log_scale_offset`` (the
    logarithm of a factor for each channel's scale) and ``bias``.

    Attributes:
        reads: the quantizer of its input, in a tuple since that is no part of it, where its bias is
            a multiple of the product of both scales, for devices that add it to integers; else
            empty.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, layer: nn.Module, bits: int, grid: Grid = ANY) -> None:
        super().__init__()
        self.layer = layer
        self.bits = bits
        self.grid = grid
        self.reads: tuple[ActivationQuantizer, ...] = ()
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
        scale, zero = search_scale(rows, self.bits, p, self.grid)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero)

    def learn_scales(self) -> None:
        """Creates variables of the scales, where integers can follow them."""
        integers = self.learned_integers
        if self.grid.power_of_two and not (integers is not None and integers.follows_scale):
            return
        self.log_scale_offset = nn.Parameter(torch.zeros_like(self.scale))

    def learn_bias(self) -> None:
        """Creates a variable of the bias, where there is one."""
        if getattr(self.layer, "bias", None) is not None:
            self.bias = nn.Parameter(cast(Tensor, self.layer.bias).detach().clone())

    @property
    def factor(self) -> Tensor | None:
        """By which learning has changed the scale of each channel."""
        if self.log_scale_offset is None:
            return None
        return _on_grid(torch.exp(self.log_scale_offset), self.grid)

    def trained_weight(self) -> Tensor:
        """The weight as its variables make it."""
        scale = self.per_channel_view(self.scale)
        factor = self.factor
        if factor is not None:
            factor = self.per_channel_view(factor)
        if self.learned_integers is None:
            return self.weight if factor is None else self.weight * factor
        if self.grid.power_of_two:
            self.learned_integers.factor = factor
        scale = scale if factor is None else scale * factor
        return dequantize(self.learned_integers(), scale, self.per_channel_view(self.zero_point))

    def trained_bias(self) -> Tensor | None:
        """The bias as its variable makes it, a multiple of the product of both scales where it has
        to be one."""
        bias = cast("Tensor | None", self.layer.bias) if self.bias is None else self.bias
        if bias is None or not self.reads:
            return bias
        unit = self.bias_unit()
        return bias + (integer_bias(bias, unit) * unit - bias).detach()

    @torch.no_grad()
    def bias_unit(self) -> Tensor:
        """The product of both scales (channels,): what 1 stands for in an integer bias."""
        factor = self.factor
        return self.reads[0].step * (self.scale if factor is None else self.scale * factor)

    def freeze(self) -> None:
        """Rounds to integers; afterwards ``layer`` computes with their float image."""
        factor = None if self.factor is None else self.factor.detach()
        if self.learned_integers is not None:
            if self.grid.power_of_two and factor is not None:
                self.learned_integers.factor = self.per_channel_view(factor)
            q = self.learned_integers.rounded()
        elif self.integers is not None:
            q = self.integers
        else:
            scale, zero = (self.per_channel_view(x) for x in (self.scale, self.zero_point))
            q = quantize(self.weight.detach(), scale, zero, self.bits)
        scale = self.scale if factor is None else (self.scale * factor).contiguous()
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

    def nearest_factor(self, factor: Tensor) -> Tensor:
        """What its scales (channels,) can be multiplied by, nearest to ``factor``."""
        return _on_grid(factor, self.grid)

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
        if self.bias is not None or self.reads:
            state |= {"bias": bias} if (bias := self.trained_bias()) is not None else {}
        if not state:
            return cast(Tensor, self.layer(x))
        return cast(Tensor, functional_call(self.layer, state, (x,)))
