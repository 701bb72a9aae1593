"""How a run ends early: its work on Ray is stopped, one line says why, and nothing comes after.

Prefect, Ray and MLflow answer the loss of a server, and signals, with minutes of retries and pages
of tracebacks. So a run that cannot go on ends its process itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from urllib.parse import urlsplit

from modcap.core.messages import without_password

Cleanup = Callable[[str], object]

__all__ = ["AGAIN", "end", "ending_well", "gone"]

AGAIN = "start the same command again, finished jobs are kept"
_CLEANUP_SECONDS = 8.0
_LOOK_SECONDS = 1.0
_PATIENCE = 30.0  # seconds without an answer before a server counts as gone
_SIGNALS = {
    signal.SIGINT: (f"interrupted: {AGAIN}", 130),
    signal.SIGTERM: (f"terminated: {AGAIN}", 143),
}
_once = threading.Lock()  # taken by the first who ends the process, and never given back


def end(message: str, code: int, *cleanups: Cleanup) -> None:
    """Runs the cleanups, for some seconds at most, prints one line and ends the process."""
    if not _once.acquire(blocking=False):
        return
    said = _silence()
    workers = [threading.Thread(target=_quietly, args=(c, message), daemon=True) for c in cleanups]
    for worker in workers:
        worker.start()
    limit = time.monotonic() + _CLEANUP_SECONDS
    for worker in workers:
        worker.join(max(0.0, limit - time.monotonic()))
    with contextlib.suppress(OSError):
        os.write(said, f"modcap: {without_password(message)}\n".encode())
    os._exit(code)


def _silence() -> int:
    """Sends whatever else is still printed nowhere; returns the true stderr."""
    with contextlib.suppress(Exception):
        sys.stderr.flush()
    said = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return said


def _quietly(cleanup: Cleanup, message: str) -> None:
    with contextlib.suppress(BaseException):
        cleanup(message)


@contextlib.contextmanager
def ending_well(*cleanups: Cleanup) -> Iterator[None]:
    """Signals, and the loss of Prefect's server, end the process by :func:`end`.

    Only the main thread of a process receives signals: elsewhere they stay what they were.
    """
    over = threading.Event()
    threading.Thread(target=_watch_prefect, args=(over, cleanups), daemon=True).start()

    def stop(number: int, frame: FrameType | None) -> None:
        end(*_SIGNALS[signal.Signals(number)], *cleanups)

    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, stop) for number in _SIGNALS} if here else {}
    try:
        yield
    finally:
        over.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch_prefect(over: threading.Event, cleanups: tuple[Cleanup, ...]) -> None:
    address = os.environ["PREFECT_API_URL"]
    patience = float(os.environ.get("MODCAP_PATIENCE", _PATIENCE))
    heard = time.monotonic()
    while not over.wait(_LOOK_SECONDS):
        if not gone(address):
            heard = time.monotonic()
        elif time.monotonic() - heard > patience:
            end(f"Prefect at {address} is gone: {AGAIN}", 1, *cleanups)


def gone(address: str) -> bool:
    """Whether nobody listens there any more."""
    parts = urlsplit(address)
    port = parts.port or {"https": 443}.get(parts.scheme, 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=2).close()
    except OSError:
        return True
    return False
