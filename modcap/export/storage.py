"""Storage: the types that hold integers of 2 to 8 bits in an ONNX file.

There is no type of 3, 5, 6 or 7 bits: the next larger one holds these. 4-bit types came with
opset 21, 2-bit types with opset 25.
"""

from __future__ import annotations

from modcap.core.errors import InputError

__all__ = ["IR_VERSIONS", "OPSETS", "check_opset", "storage_bits"]

OPSETS: dict[int, tuple[int, ...]] = {25: (2, 4, 8), 21: (4, 8), 13: (8,)}
"""The widths that each opset has types for."""

IR_VERSIONS = {25: 13, 21: 10, 13: 7}


def check_opset(opset: int) -> None:
    """Refuses an opset that files are not written for.

    Raises:
        InputError: it is another one than 25, 21 and 13.
    """
    if opset not in OPSETS:
        raise InputError(
            f"--opset {opset}: give 25 (2-bit types; onnx 1.20 and onnxruntime 1.25 or later), 21 "
            "(4-bit types) or 13 (8-bit types only)"
        )


def storage_bits(bits: int, opset: int) -> int:
    """The width of the type that holds integers of ``bits``."""
    return next(width for width in OPSETS[opset] if width >= bits)
