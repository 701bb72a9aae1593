"""What a worker gives up once it has had nothing to do for a while."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

__all__ = ["Idle"]


class Idle:
    """Calls ``release`` when nothing was busy for some seconds; never while something is."""

    def __init__(self, release: Callable[[], object], seconds: float) -> None:
        self._release, self._seconds = release, seconds
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """While work is done, by one thread at a time."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None
        try:
            yield
        finally:
            with self._lock:
                timer = self._timer = threading.Timer(self._seconds, self._over)
                timer.daemon = True
                timer.start()

    def _over(self) -> None:
        with self._lock:
            if self._timer is threading.current_thread():  # else, work began meanwhile
                self._release()
