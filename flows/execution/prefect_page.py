"""What Prefect shows of a flow run beside its task runs: how far it is, and what happens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prefect import get_client, get_run_logger
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext

from modcap.flows.execution.followers import Standing
from modcap.flows.execution.progress import Progress

__all__ = ["shown_in_prefect"]


@contextlib.contextmanager
def shown_in_prefect(progress: Progress) -> Iterator[None]:
    """While a flow run does its work: a bar among its artifacts, and every line that stays on the
    terminal in its log. Outside a flow run, nothing."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        yield
        return
    new = ArtifactCreate(
        type="progress",
        key="progress",
        description="jobs done",
        data=0.0,
        flow_run_id=context.flow_run.id,
    )
    # not by prefect.artifacts, whose functions leave a client with an open connection behind
    with get_client(sync_client=True) as client:
        bar = client.create_artifact(new).id

    def tell(standing: Standing) -> None:
        now = ArtifactUpdate(data=standing.percent, description=_said(standing))
        with get_client(sync_client=True) as client:
            client.update_artifact(bar, now)

    with progress.logged_by(get_run_logger().info), progress.followed_by(tell):
        yield


def _said(standing: Standing) -> str:
    """Such as ``12 of 84 jobs done, about 95 s left``."""
    said = f"{standing.done} of {standing.total} jobs done"
    left = standing.seconds_left
    return f"{said}, about {left:.0f} s left" if left else said
