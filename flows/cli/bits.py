"""Bits that were chosen, or are of several kinds, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modcap.core.errors import printable

__all__ = ["print_bits"]


def print_bits(
    name: str, layers: Sequence[Mapping[str, Any]] | None, allocation: Mapping[str, Any] | None
) -> None:
    """The bits of layers, and what was predicted where a job chose them.

    Args:
        name: of what has them.
        layers: their bits; None where they are not chosen yet.
        allocation: what the choice said of itself.
    """
    from modcap.flows.reports.chosen_bits import bits_in_words

    if layers is None:
        print(printable(f"{name}: chosen once the sensitivities are measured"))
        return
    print(printable(f"{name}: {bits_in_words(layers)}"))
    if allocation is None:
        return
    drop = allocation["predicted_drop"]
    change = f", {drop:.2g} % of answers would change by rounding to nearest" if drop else ""
    size = f"{allocation['average_bits']:.3f} on average, {allocation['predicted_bytes']:,} bytes"
    print(f"  {size}{change}")
