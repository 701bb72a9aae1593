"""What can go wrong for a reason the user can mend, and the exit codes that say so."""

from __future__ import annotations

from typing import Any

__all__ = [
    "GateRefused",
    "InputError",
    "Lost",
    "ModcapError",
    "Notice",
    "Unavailable",
    "printable",
]


def printable(text: str) -> str:
    """``text`` on one line: what a terminal would obey, and not show, is written out."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)


class ModcapError(Exception):
    """Base of every error that modcap raises on purpose; ``exit_code`` is the command's.

    Attributes:
        report: what there is to report nevertheless.
    """

    exit_code = 1

    def __init__(self, message: str, report: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.report = report


class InputError(ModcapError):
    """The user's input is wrong. The message is one line: what, where, how to mend it.

    Names in it come from files of anyone; so it is made printable here.
    """

    exit_code = 2

    def __init__(self, message: str, report: dict[str, Any] | None = None) -> None:
        super().__init__(printable(message), report)


class Unavailable(InputError):
    """What the input needs is not there: a service, a node, images. The same input may do later."""


class Lost(Unavailable):
    """What was there when the work began has gone: a service, a lease. Not the input's fault."""

    exit_code = 1


class GateRefused(ModcapError):
    """A promotion gate refused; the message is the reason."""

    exit_code = 3


class Notice(UserWarning):
    """Something to know that is no error; the command line prints its one line."""
