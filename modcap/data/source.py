"""What a source of images is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from modcap.data.images import Images, Split
from modcap.data.preprocess import Preprocess

__all__ = ["Reader", "Source"]


class Reader(Protocol):
    """Reads the images of a split; see :func:`modcap.data.sources.load`."""

    def __call__(
        self,
        spec: str,
        split: Split,
        preprocess: Preprocess,
        limit: int | None,
        classes: Sequence[str] | None,
    ) -> Images: ...


@dataclass(frozen=True)
class Source:
    """One way to give images.

    Attributes:
        help: how a user writes it, in a few words.
        takes: whether a text is written so.
        read: its reader.
    """

    help: str
    takes: Callable[[str], bool]
    read: Reader
