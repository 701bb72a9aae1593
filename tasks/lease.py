"""A lease: one process at a time, over conditional puts of S3, released by time if it dies."""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tasks.store import Store

__all__ = ["lease"]

_TERM = 60.0  # seconds that a lease holds without being renewed
_WAIT = 0.5


@dataclass
class _Lease:
    store: Store
    name: str
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def document(self) -> bytes:
        return json.dumps({"token": self.token, "until": time.time() + _TERM}).encode()

    def take(self) -> bool:
        """Takes what is free, or has run out."""
        if self.store.put_document(self.name, self.document(), unless="exists"):
            return True
        held = self.store.get_document(self.name)
        if held is None or json.loads(held[0])["until"] > time.time():
            return False
        return self.store.put_document(self.name, self.document(), only_if=held[1])

    def renew(self, stop: threading.Event) -> None:
        while not stop.wait(_TERM / 3):
            self.store.put_document(self.name, self.document())

    def give_back(self) -> None:
        held = self.store.get_document(self.name)
        if held is not None and json.loads(held[0])["token"] == self.token:
            self.store.delete_document(self.name)


@contextlib.contextmanager
def lease(store: Store, name: str, patience: float = 0.0) -> Iterator[bool]:
    """Holds ``name`` against other processes; yields False where another one holds it.

    Args:
        store: where it is kept, under ``leases/``.
        name: of what is done once at a time.
        patience: seconds to wait for the other process.
    """
    mine = _Lease(store, f"leases/{name}.json")
    limit = time.monotonic() + patience
    while not (taken := mine.take()) and time.monotonic() < limit:
        time.sleep(_WAIT)
    if not taken:
        yield False
        return
    stop = threading.Event()
    renewal = threading.Thread(target=mine.renew, args=(stop,), daemon=True)
    renewal.start()
    try:
        yield True
    finally:
        stop.set()
        renewal.join()
        mine.give_back()
