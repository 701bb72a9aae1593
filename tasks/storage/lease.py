"""A lease: one process at a time, over conditional puts of S3, released by time if it dies."""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from botocore.exceptions import BotoCoreError, ClientError

from modcap.core.errors import ModcapError
from modcap.tasks.storage.store import Store

__all__ = ["Lease", "lease"]

_TERM = 60.0  # seconds that a lease holds without being renewed
_WAIT = 0.5


@dataclass
class Lease:
    """A name that this process holds, until another one takes it over."""

    store: Store
    name: str
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    _version: str | None = None  # of the document, as this process wrote it last
    _until: float = 0.0

    def take(self) -> bool:
        """Takes what is free, or has run out."""
        if self._write(unless="exists"):
            return True
        held = self.store.get_document(self.name)
        if held is None or json.loads(held[0])["until"] > time.time():
            return False
        return self._write(only_if=held[1])

    def _write(self, **condition: str) -> bool:
        until = time.time() + _TERM
        document = json.dumps({"token": self.token, "until": until}).encode()
        version = self.store.put_document(self.name, document, **condition)
        if version is None:
            held = self.store.get_document(self.name)
            if held is not None and json.loads(held[0])["token"] == self.token:
                # it was written before, and the answer was lost
                version = self.store.put_document(self.name, document, only_if=held[1])
        self._version, self._until = version, until if version else 0.0
        return version is not None

    def check(self) -> None:
        """Right before what must be done by one process alone.

        Raises:
            ModcapError: the lease ran out, since the store, or this process, stood still.
        """
        if time.time() > self._until:
            raise ModcapError(f"the lease {self.name} was lost to another process: start again")

    def renew(self, stop: threading.Event) -> None:
        """Until it is lost; a store that is away for a while is asked again."""
        while self._version and not stop.wait(_TERM / 3):
            with contextlib.suppress(BotoCoreError, ClientError):
                self._write(only_if=self._version)

    def give_back(self) -> None:
        held = self.store.get_document(self.name)
        if held is not None and json.loads(held[0])["token"] == self.token:
            self.store.delete_document(self.name)


@contextlib.contextmanager
def lease(store: Store, name: str, patience: float = 0.0) -> Iterator[Lease | None]:
    """Holds ``name`` against other processes; yields None where another one holds it.

    Args:
        store: where it is kept, under ``leases/``.
        name: of what is done once at a time.
        patience: seconds to wait for the other process.
    """
    mine = Lease(store, f"leases/{name}.json")
    limit = time.monotonic() + patience
    while not (taken := mine.take()) and time.monotonic() < limit:
        time.sleep(_WAIT)
    if not taken:
        yield None
        return
    stop = threading.Event()
    renewal = threading.Thread(target=mine.renew, args=(stop,), daemon=True)
    renewal.start()
    try:
        yield mine
    finally:
        stop.set()
        renewal.join()
        mine.give_back()
