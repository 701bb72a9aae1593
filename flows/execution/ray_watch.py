"""Whether Ray is there, and how much it may be given at once."""

from __future__ import annotations

import contextlib
import socket
import time

import ray

from modcap.flows.execution.prefect_control import FlowControl
from modcap.tasks.workers.ray_resources import in_flight

__all__ = ["RayWatch"]

_LOOKS = 3  # before Ray counts as gone
_SECONDS = 2.0  # between two checks that it is there


class RayWatch:
    """Ends the process with one line where the cluster is gone.

    Ray itself would block every call for a minute and then end the process without a word of ours.
    """

    def __init__(self, control: FlowControl) -> None:
        self._control = control
        self._address = ray.get_runtime_context().gcs_address
        self._looked = time.monotonic()
        self.room = in_flight()
        """Batches at once that keep the cluster busy; asked now and then, as nodes come and go."""

    def check(self) -> None:
        """Looks, now and then."""
        if time.monotonic() - self._looked < _SECONDS:
            return
        self._looked = time.monotonic()
        host, _, port = self._address.rpartition(":")
        for _ in range(_LOOKS):
            with (
                contextlib.suppress(OSError),
                socket.create_connection((host, int(port)), timeout=2),
            ):
                self.room = in_flight()
                return
            time.sleep(1)
        self._control.crash(
            f"Ray at {self._address} is gone: start the same command again, finished jobs are kept"
        )
