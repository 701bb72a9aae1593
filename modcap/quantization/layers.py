"""A module with quantizers: the float graph, its weight layers wrapped, their inputs quantized.

Every tensor that a weight layer consumes is quantized once, in front of all of its consumers, so
the shortcut of a residual block sees what its convolution sees. A module owns the quantizers of
its weights and of the values that it consumes, its input among them: all of its state is local.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from modcap.quantization.affine import dequantize, levels, quantize
from modcap.quantization.fake_quantize import GAMMA, ZETA, FakeQuantize, Round, Soften
from modcap.quantization.scale_search import search_scale

__all__ = [
    "BFLOAT16_BITS",
    "ActivationQuantizer",
    "Bits",
    "QuantLayer",
]

BFLOAT16_BITS = 6
"""Bits whose levels bfloat16, with 8 significant ones, still tells apart well."""

_NEARLY_HALF = 0.49  # as far from an integer as a number may be that rounds to it


class Bits(NamedTuple):
    """Bit-widths of one weight layer and of its input."""

    weight: int
    activation: int


def draw(like: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
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

    ``enabled`` False passes values through; ``keep_probability`` below 1 leaves each element
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
        self.keep_probability = 1.0
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return x
        if not torch.is_grad_enabled():
            return torch.clamp_(torch.round(x / self.scale), *self._range).mul_(self.scale)
        if self.bits > BFLOAT16_BITS:  # such as those of the first and the last layer
            x = x.float()
        keep = None
        if self.keep_probability < 1:
            keep = draw(x, self.keep_probability, self.generator)
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


class QuantLayer(nn.Module):
    """A convolution or linear layer whose weight is quantized per output channel.

    Four states: *float* (``integers`` and ``rounding`` are None), *soft* (``rounding`` holds the
    variables of the rectified sigmoid), *hard* (``integers`` hold the weight, the ``layer`` its
    float image) and *loose* (hard, and ``stretch`` holds variables that scale each channel; where
    integers may change, ``latent`` holds variables that round to them).
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
        self.rounding: nn.Parameter | None = None
        self.latent: nn.Parameter | None = None
        self.stretch: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        self.integers: Tensor | None = None
        self.beta: float | None = None  # exponent of the regulariser; None leaves it out
        self.penalty = torch.zeros(())

    @property
    def weight(self) -> Tensor:
        return cast(Tensor, self.layer.weight)

    @property
    def fan_in(self) -> int:
        """Weights of each channel."""
        return self.weight.numel() // len(self.scale)

    def _spread(self, per_channel: Tensor) -> Tensor:
        shape = [1] * self.weight.ndim
        shape[self.axis] = -1
        return per_channel.reshape(shape)

    def calibrate(self, p: float) -> None:
        """Searches scale and zero point of each output channel."""
        rows = self.weight.detach().transpose(0, self.axis).flatten(1)
        scale, zero = search_scale(rows, self.bits, p)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero)

    def soften(self) -> None:
        """Creates the rounding variables V with h(V) = the fraction that rounding down drops."""
        ratio, zero = self.weight.detach() / self._spread(self.scale), self._spread(self.zero_point)
        self._floor = torch.floor(ratio) + zero
        share = ratio - torch.floor(ratio)
        self.rounding = nn.Parameter(-torch.log((ZETA - GAMMA) / (share - GAMMA) - 1))
        self.loosen()

    def loosen(self) -> None:
        """Creates variables of the scales, as logarithms of a factor, and of the biases."""
        self.stretch = nn.Parameter(torch.zeros_like(self.scale))
        if getattr(self.layer, "bias", None) is not None:
            self.bias = nn.Parameter(cast(Tensor, self.layer.bias).detach().clone())

    def free(self, weight: Tensor) -> None:
        """Lets the integers of the loose state change: as close to the full-precision ``weight``
        as they round to what they are."""
        assert self.integers is not None
        exact = weight / self._spread(self.scale) + self._spread(self.zero_point)
        away = torch.clamp(exact - self.integers, -_NEARLY_HALF, _NEARLY_HALF)
        self.latent = nn.Parameter(self.integers + away)

    def trained_weight(self) -> Tensor:
        """The weight as stretched, and as its variables round it; leaves the regulariser of soft
        ones in ``penalty``."""
        assert self.stretch is not None
        factor = self._spread(torch.exp(self.stretch))
        if self.rounding is not None:
            rounding = self.rounding
            up, self.penalty = Soften.apply(rounding, self.beta)  # type: ignore[no-untyped-call]
            q = torch.clamp(self._floor + up, 0, levels(self.bits))
        elif self.latent is not None:
            q = Round.apply(self.latent, levels(self.bits))  # type: ignore[no-untyped-call]
        else:
            return self.weight * factor
        return dequantize(q, self._spread(self.scale) * factor, self._spread(self.zero_point))

    def harden(self) -> None:
        """Rounds to integers; afterwards ``layer`` computes with their float image."""
        if self.latent is not None:
            q = torch.clamp(torch.round(self.latent.detach()), 0, levels(self.bits))
        elif self.integers is not None:
            q = self.integers
        elif self.rounding is not None:
            q = torch.clamp(self._floor + (self.rounding.detach() >= 0), 0, levels(self.bits))
        else:
            scale, zero = self._spread(self.scale), self._spread(self.zero_point)
            q = quantize(self.weight.detach(), scale, zero, self.bits)
        if self.stretch is not None:
            self.scale = (self.scale * torch.exp(self.stretch.detach())).contiguous()
        bias = None if self.bias is None else self.bias.detach()
        self.restore(q.to(torch.uint8), self.scale, self.zero_point, bias)

    def restore(
        self, integers: Tensor, scale: Tensor, zero_point: Tensor, bias: Tensor | None
    ) -> None:
        """Puts the layer into the hard state with the given integers, scale, zero point, bias."""
        self.integers, self.scale, self.zero_point = integers, scale, zero_point
        self.rounding = self.latent = self.stretch = self.bias = None
        image = dequantize(integers.float(), self._spread(scale), self._spread(zero_point))
        self.layer.weight = nn.Parameter(image, requires_grad=False)
        if bias is not None:
            self.layer.bias = nn.Parameter(bias, requires_grad=False)

    def rescale(self, factor: Tensor, shift: Tensor | None) -> None:
        """Makes its output z in the hard state ``factor`` z + ``shift``, each (channels,)."""
        assert self.integers is not None
        bias = cast("Tensor | None", self.layer.bias)
        if bias is not None:
            bias = bias * factor + (0 if shift is None else shift)
        self.restore(self.integers, self.scale * factor, self.zero_point, bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.stretch is None:
            return cast(Tensor, self.layer(x))
        state = {"weight": self.trained_weight()}
        if self.bias is not None:
            state["bias"] = self.bias
        return cast(Tensor, functional_call(self.layer, state, (x,)))
