"""The bits of each layer, and what was predicted where a job chose them: for reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from modcap.core.serialization import Result
from modcap.jobs.job import Cell

__all__ = ["allocation_of", "bits_in_words", "layer_bits"]

_SAID = ("average_bits", "predicted_bytes", "predicted_error", "predicted_drop")


def layer_bits(cell: Cell) -> list[dict[str, Any]]:
    """Of each weight layer, in order: its path in the model, bits of its weights and of its input;
    0 stays float."""
    return [
        {"layer": path, "w": bits.weight, "a": bits.activation}
        for paths, widths in zip(cell.network.paths, cell.bits, strict=True)
        for path, bits in zip(paths, widths, strict=True)
    ]


def allocation_of(result: Result | None) -> dict[str, float | None] | None:
    """What a choice of bits said of itself: average bits of a weight, bytes of the artifact, and,
    where it went by sensitivities, error of the output and percentage of answers that change, were
    all layers rounded to nearest. None where nothing was chosen."""
    return None if result is None else {name: result.meta.get(name) for name in _SAID}


def bits_in_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """Such as ``stem w8a8, blocks.0.a … blocks.2.b w3a4``: neighbours of equal bits as one."""
    parts = []
    for bits, group in groupby(rows, key=lambda row: (row["w"], row["a"])):
        names = [row["layer"] for row in group]
        where = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
        weight, activation = (str(width or "float") for width in bits)
        parts.append(f"{where} w{weight}a{activation}")
    return ", ".join(parts)
