"""A lease: one process at a time, over conditional writes of S3; where its holder dies, the next
one takes it over.

No machine's clock is compared with another's: a holder renews its document all the time, and
another process takes it over only after it saw no change for a whole term of its own clock. Not
Prefect's concurrency limits: who shares a store may have a Prefect server each, and that keeps
leases in its memory.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from botocore.exceptions import BotoCoreError, ClientError

from modcap.core.errors import Lost, ModcapError
from modcap.core.messages import first_line
from modcap.tasks.storage.store import Store

__all__ = ["Lease", "give_all_back", "lease"]

_TERM = 60.0  # seconds without a sign of life after which a lease may be taken over
_BEAT = 5.0  # seconds between two signs of life
_WAIT = 0.5
_LOCK = 1.0  # seconds that giving back waits for who holds the lock
_ARRIVAL = 2.0  # seconds in which a write that was under way arrives


@dataclass
class Lease:
    """A name that this process holds, until another one takes it over."""

    store: Store
    name: str
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    holder_lives: bool = False  # another one holds it, and gave a sign of life since the first look
    _version: str | None = None  # of the document, as this process wrote it last
    _beat: int = 0
    _writing: bool = False  # an answer of the store is awaited, or never came
    _seen: tuple[str, float] | None = None  # another one's version, and since when it is the same
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> bool:
        """Takes what is free, or what did not change for a term of calls to this method."""
        with self._lock:
            if self._write(unless="exists"):
                return True
            held = self.store.get_document(self.name)
            if held is None:  # given back this moment: free at the next look
                return False
            now = time.monotonic()
            if self._seen is None or self._seen[0] != held[1]:
                self.holder_lives = self._seen is not None
                self._seen = held[1], now
            return now - self._seen[1] > _TERM and self._write(only_if=held[1])

    @property
    def silence(self) -> float:
        """Seconds for which another one's lease was seen without a sign of life."""
        return time.monotonic() - self._seen[1] if self._seen is not None else 0.0

    def _write(self, **condition: str) -> bool:
        """Writes the next sign of life; each has its own content, and so its own version."""
        self._beat += 1
        document = json.dumps({"token": self.token, "beat": self._beat}).encode()
        self._writing = True
        version = self.store.put_document(self.name, document, **condition)
        self._writing = False
        if version is None:
            held = self.store.get_document(self.name)
            if held is not None and _token(held[0]) == self.token:
                version = held[1]  # it was written before, and the answer was lost
        self._version = version
        return version is not None

    def _hold_on(self) -> bool:
        """Renews it; False where it is another one's by now."""
        with self._lock:
            return self._version is not None and self._write(only_if=self._version)

    def check(self) -> None:
        """Right before each step that must be taken by one process alone: the store itself says
        whose the lease is, and whoever waits for it starts to wait anew.

        Raises:
            ModcapError: it is another one's, since the store, or this process, stood still.
            Lost: the store cannot be asked.
        """
        try:
            held = self._hold_on()
        except (BotoCoreError, ClientError) as error:
            raise Lost(f"the lease {self.name}: {first_line(error)}: start again") from None
        if not held:
            raise ModcapError(f"the lease {self.name} was lost to another process: start again")

    def renew(self, stop: threading.Event) -> None:
        """Until it is lost; a store that is away for a while is asked again."""
        while not stop.wait(min(_BEAT, _TERM / 4)):
            with contextlib.suppress(BotoCoreError, ClientError):
                if not self._hold_on():
                    return

    def give_back(self) -> None:
        """Frees it, unless another one has it. A store that is away frees it after a term.

        It is known by its token, since a signal may come between a write and its answer, and while
        the lock is held by what the signal stopped.
        """
        free = self._lock.acquire(timeout=_LOCK)
        try:
            with contextlib.suppress(BotoCoreError, ClientError):
                self._free()
        finally:
            if free:
                self._lock.release()

    def _free(self) -> None:
        until = time.monotonic() + (_ARRIVAL if self._writing else 0.0)
        while True:
            held = self.store.get_document(self.name)
            if held is not None and _token(held[0]) == self.token:
                self.store.delete_document(self.name, only_if=held[1])
                break
            if time.monotonic() >= until:
                break
            time.sleep(_ARRIVAL / 10)
        self._version = None


_held: list[Lease] = []  # by this process, or about to be


def give_all_back() -> None:
    """Frees what this process holds: it is about to end, at once."""
    for mine in tuple(_held):
        mine.give_back()


def _token(document: bytes) -> str | None:
    try:
        return str(json.loads(document)["token"])
    except (ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def lease(
    store: Store, name: str, patience: float = 0.0, say: Callable[[str], object] | None = None
) -> Iterator[Lease | None]:
    """Holds ``name`` against other processes; yields None where another one holds it.

    That one is known to live by its next sign of life; without any, this waits for a term, without
    regard to ``patience``.

    Args:
        store: where it is kept, under ``leases/``.
        name: of what is done once at a time.
        patience: seconds to wait for another process that lives.
        say: told, in one line, that this waits for one that seems to be dead.
    """
    mine = Lease(store, f"leases/{name}.json")
    stop = threading.Event()
    renewal = threading.Thread(target=mine.renew, args=(stop,), daemon=True)
    _held.append(mine)
    try:
        if _taken(mine, name, patience, say):
            renewal.start()
            yield mine
        else:
            yield None
    finally:
        stop.set()
        if renewal.is_alive():
            renewal.join()
        mine.give_back()
        _held.remove(mine)


def _taken(mine: Lease, name: str, patience: float, say: Callable[[str], object] | None) -> bool:
    limit = time.monotonic() + patience
    while not mine.take():
        if mine.holder_lives and time.monotonic() >= limit:
            return False
        if say is not None and mine.silence > min(2 * _BEAT, _TERM / 4):
            left = max(0.0, _TERM - mine.silence)
            say(f"another process holds {name} and is silent: waiting, for {left:.0f} s at most")
            say = None
        time.sleep(_WAIT)
    return True
