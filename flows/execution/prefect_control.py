"""What a person does to a flow run in Prefect's page: pausing, resuming and cancelling it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import Pause
from prefect.states import Cancelled, Crashed

from modcap.core.errors import ModcapError
from modcap.flows.execution.ending import end, gone

__all__ = ["FlowControl"]

_SECONDS = 2.0  # between two looks at the state of the run


class FlowControl:
    """Follows the state of the flow run that this code is part of, if any.

    ``stop`` is called where no work may run: running jobs end, and start again once resumed.
    """

    def __init__(self, stop: Callable[[], object]) -> None:
        context = FlowRunContext.get()
        self._run_id = context.flow_run.id if context and context.flow_run else None
        self._stop = stop
        self._looked = time.monotonic()

    def check(self) -> None:
        """Returns while the run may go on; waits while it is paused.

        Raises:
            ModcapError: it was cancelled.
            Pause: it was suspended; a worker starts it again when it is resumed.
        """
        if self._run_id is None or time.monotonic() - self._looked < _SECONDS:
            return
        state = self._state()
        while state is not None and state.type is StateType.PAUSED:
            self._stop()
            if state.state_details.pause_reschedule:
                raise Pause(state=state)
            time.sleep(_SECONDS)
            state = self._state()
        if state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED):
            self._stop()
            self._cancelled()
            raise ModcapError("the run was cancelled: start it again, finished jobs are kept")

    def _state(self) -> State | None:
        self._looked = time.monotonic()
        assert self._run_id is not None
        if gone(os.environ["PREFECT_API_URL"]):  # who watches it decides when that lasts too long
            return None
        with contextlib.suppress(httpx.TransportError), get_client(sync_client=True) as client:
            return client.read_flow_run(self._run_id).state
        return None

    def _cancelled(self) -> None:
        self._set(Cancelled())

    def _set(self, state: State) -> None:
        assert self._run_id is not None
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(self._run_id, state, force=True)

    def crash(self, message: str) -> None:
        """Marks the run as crashed, says why in one line and ends the process with 1, at once."""
        end(message, 1, self.mark_crashed)

    def mark_crashed(self, message: str) -> None:
        """Says why the run ended in Prefect, if that is there."""
        if self._run_id is not None and not gone(os.environ["PREFECT_API_URL"]):
            self._set(Crashed(message=message))
