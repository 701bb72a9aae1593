"""Bit packing: integers of b bits as a little-endian bit stream of ceil(n * b / 8) bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["pack", "unpack"]

_CHUNK = 1 << 20  # values at a time; a multiple of 8, so that chunks end on whole bytes


def pack(values: Tensor, bits: int) -> Tensor:
    """Packs ``values`` (any shape, integers 0 to 2^bits - 1) into a uint8 vector.

    Value i occupies bits i * b to (i + 1) * b - 1, lowest bit first.

    Raises:
        ValueError: bits is not 1 to 8, or a value does not fit.
    """
    _check_bits(bits)
    flat = values.detach().cpu().flatten()
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < 1 << bits:
        raise ValueError(f"values {int(flat.min())} to {int(flat.max())} do not fit {bits} bits")
    octets = flat.to(torch.uint8).numpy()
    parts = [
        np.packbits(
            np.unpackbits(octets[i : i + _CHUNK, None], axis=1, count=bits, bitorder="little"),
            bitorder="little",
        )
        for i in range(0, len(octets), _CHUNK)
    ]
    return torch.from_numpy(np.concatenate(parts)) if parts else torch.empty(0, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """The inverse of :func:`pack`: uint8 values of the given shape.

    Raises:
        ValueError: bits is not 1 to 8, or the length does not match the shape.
    """
    _check_bits(bits)
    count = math.prod(shape)
    if packed.numel() != (count * bits + 7) // 8:
        raise ValueError(f"{packed.numel()} bytes do not hold {count} values of {bits} bits")
    stream = packed.cpu().numpy()
    values = np.empty(count, dtype=np.uint8)
    for i in range(0, count, _CHUNK):
        stop = min(i + _CHUNK, count)
        piece = stream[i * bits // 8 : (stop * bits + 7) // 8]
        digits = np.unpackbits(piece, count=(stop - i) * bits, bitorder="little")
        values[i:stop] = np.packbits(digits.reshape(-1, bits), axis=1, bitorder="little")[:, 0]
    return torch.from_numpy(values).reshape(tuple(shape))


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"{bits} bits: 1 to 8 are supported")
