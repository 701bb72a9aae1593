"""Bit-widths. A recipe is read, and ``modcap --help`` answers, without waiting for torch."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["BFLOAT16_BITS", "Bits"]

BFLOAT16_BITS = 6
"""Bits whose levels bfloat16, with 8 significant ones, still tells apart well."""


class Bits(NamedTuple):
    """Bit-widths of one weight layer and of its input."""

    weight: int
    activation: int
