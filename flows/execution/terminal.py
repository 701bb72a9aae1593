"""What a person sees on stderr beside results: what is waited for, as much as was asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["asked", "console", "doing", "done", "verbose"]


@dataclass
class _Terminal:
    quiet: bool = False
    verbose: bool = False
    live: bool = True  # whether a line may be drawn over
    status: Any = None


_terminal = _Terminal()


@contextlib.contextmanager
def asked(*, quiet: bool, verbose: bool, live: bool) -> Iterator[None]:
    """While a command runs: whether it says nothing but errors, or more than usual, and whether
    lines may be drawn over."""
    before = vars(_terminal).copy()
    vars(_terminal).update(quiet=quiet, verbose=verbose, live=live)
    try:
        yield
    finally:
        done()
        vars(_terminal).update(before)


def verbose() -> bool:
    """Whether more than usual is to be said."""
    return _terminal.verbose


def console() -> Console:
    """Stderr; it takes nothing where quiet was asked for."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, quiet=_terminal.quiet)


def doing(what: str) -> None:
    """Shows one line that says what is waited for, on a terminal, until something else is shown."""
    if _terminal.quiet or not _terminal.live:
        return
    if _terminal.status is None:
        err = console()
        if not err.is_terminal:
            return
        _terminal.status = err.status(what)
        _terminal.status.start()
    _terminal.status.update(what)


def done() -> None:
    """Takes that line away."""
    if _terminal.status is not None:
        _terminal.status.stop()
        _terminal.status = None
