"""What running jobs said last, as the driver reads it."""

from __future__ import annotations

from typing import Any

import ray

from modcap.tasks.workers.ray_jobs import ProgressBoard

__all__ = ["Board"]


class Board:
    """Read without waiting: it only informs.

    One actor serves a driver, whatever it runs; its start takes a second.
    """

    def __init__(self) -> None:
        options = {"name": "modcap-progress", "get_if_exists": True}
        self.actor: Any = ProgressBoard.options(**options).remote()  # type: ignore[attr-defined]
        self._last: dict[str, tuple[int, int, float]] = {}
        self._asked: Any = None

    def read(self) -> dict[str, tuple[int, int, float]]:
        """Of each job, by its key: step, steps, loss."""
        try:
            if self._asked is None:
                self._asked = self.actor.read.remote()
            elif ray.wait([self._asked], timeout=0)[0]:
                asked, self._asked = self._asked, None
                self._last = ray.get(asked)
        except ray.exceptions.RayError:  # its node died
            self._last = {}
        return self._last
