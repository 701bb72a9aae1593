"""Who else is told how far a run is: pages of MLflow and Prefect, beside the work.

What is slow there, or away, holds nothing up: a thread tells them, and the last word counts.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import Empty, Full, Queue

__all__ = ["Follower", "Standing"]

_SECONDS = 5.0  # between two words
_LAST_WORD = 5.0  # seconds that it may take


@dataclass(frozen=True)
class Standing:
    """How far a run is.

    Attributes:
        done, total: jobs.
        seconds_left: where that is known.
        losses: of what runs, by its label.
        errors: relative errors of the groups that are reconstructed, in the order of their end.
    """

    done: int
    total: int
    seconds_left: float | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    errors: tuple[float, ...] = ()

    @property
    def percent(self) -> float:
        return 100.0 * self.done / self.total if self.total else 0.0


class Follower:
    """Calls ``tell`` with how far a run is, now and then; what it raises is nobody's concern."""

    def __init__(self, tell: Callable[[Standing], None], seconds: float = _SECONDS) -> None:
        self._tell, self._every = tell, seconds
        self._told = -math.inf
        self._next: Queue[Standing | None] = Queue(1)
        self._thread = threading.Thread(target=self._work, name="follower", daemon=True)
        self._thread.start()

    def at(self, standing: Standing) -> None:
        """Says so, unless it was a moment ago, or the last word is still on its way."""
        if time.monotonic() - self._told >= self._every:
            with contextlib.suppress(Full):
                self._next.put_nowait(standing)
                self._told = time.monotonic()

    def close(self, last: Standing) -> None:
        """Says the last word, and waits a little until it is said."""
        until = time.monotonic() + _LAST_WORD
        with contextlib.suppress(Empty):
            self._next.get_nowait()
        with contextlib.suppress(Full):
            for word in (last, None):
                self._next.put(word, timeout=max(0.0, until - time.monotonic()))
        self._thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        while (standing := self._next.get()) is not None:
            with contextlib.suppress(Exception):
                self._tell(standing)
