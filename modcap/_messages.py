"""Parts of error messages."""

from __future__ import annotations

__all__ = ["first_line"]


def first_line(error: object) -> str:
    """What ``error`` says, short enough to stand inside a message of one line."""
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:160]
