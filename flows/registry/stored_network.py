"""The network in full precision that a version was made from, out of the store."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from modcap.graph.network import Network
from modcap.tasks.storage.store import Store

__all__ = ["stored_network"]


def stored_network(digest: str, store: Store) -> Network:
    """The network of this digest.

    Raises:
        MissingInput: it is not in the store, or damaged there.
    """
    with TemporaryDirectory() as folder:
        return Network.from_bytes(store.fetch_input(digest, Path(folder)).read_bytes())
