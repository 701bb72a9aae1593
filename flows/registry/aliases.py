"""Aliases of a registered model: whoever moves one does so alone, on what it has just read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from modcap.core.errors import Lost
from modcap.tasks.storage.lease import Lease, lease
from modcap.tasks.storage.store import Store

__all__ = ["moving_aliases"]

_PATIENCE = 600.0  # seconds to wait for others who move aliases of the same model


@contextlib.contextmanager
def moving_aliases(name: str) -> Iterator[Lease]:
    """Holds the lease of the model ``name``: read inside what decides on a move, and ask the lease
    to ``check`` right before each write.

    Raises:
        Lost: others have it all the time.
    """
    store = Store.from_environment()
    store.ensure_bucket()
    with lease(store, f"promote-{name}", _PATIENCE) as mine:
        if mine is None:
            raise Lost(f"others move aliases of {name} all the time: try again later")
        yield mine
