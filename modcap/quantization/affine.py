"""Uniform affine quantization and the search for its scale.

Integers run from 0 to 2^bits - 1:

    q(x)  = clamp(round(x / scale) + zero_point, 0, 2^bits - 1)        (round half to even)
    x'(q) = (q - zero_point) * scale

which is what ONNX QuantizeLinear and DequantizeLinear compute, so that a network exports exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dequantize", "fake_quantize", "levels", "middle", "quantize"]


def levels(bits: int) -> int:
    """The largest integer: 2^bits - 1."""
    return (1 << bits) - 1


def middle(bits: int) -> int:
    """The zero point of symmetric integers: 2^(bits - 1)."""
    return 1 << (bits - 1)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Integers (as floats) of x; scale and zero point broadcast against x."""
    return torch.clamp(torch.round(x / scale) + zero_point, 0, levels(bits))


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The real values that the integers stand for."""
    return (q - zero_point) * scale


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """x rounded to the grid: dequantize(quantize(x))."""
    return dequantize(quantize(x, scale, zero_point, bits), scale, zero_point)
