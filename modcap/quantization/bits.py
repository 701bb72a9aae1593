"""Bit-widths. A recipe is read, and ``modcap --help`` answers, without waiting for torch."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["BFLOAT16_BITS", "FLOAT", "FLOAT_BITS", "WIDTHS", "Bits"]

BFLOAT16_BITS = 6
"""Bits whose levels bfloat16, with 8 significant ones, still tells apart well."""

FLOAT_BITS = 32
"""Of a weight that is not quantized."""


class Bits(NamedTuple):
    """Bit-widths of one weight layer and of its input; 0 stays float."""

    weight: int
    activation: int

    @property
    def size(self) -> int:
        """Bits that a weight takes."""
        return self.weight or FLOAT_BITS


WIDTHS = tuple(range(2, 9))
"""Bits that there are."""

FLOAT = Bits(0, 0)
"""A layer that is not quantized."""
