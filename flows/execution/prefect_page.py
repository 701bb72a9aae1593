"""What Prefect shows of a flow run beside its task runs: how far it is, and what happens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext

from modcap.flows.execution.followers import Standing
from modcap.flows.execution.progress import Progress

__all__ = ["shown_in_prefect"]


@contextlib.contextmanager
def shown_in_prefect(progress: Progress) -> Iterator[None]:
    """While a flow run does its work: a bar among its artifacts, and every line that stays on the
    terminal in its log. Outside a flow run, nothing."""
    if FlowRunContext.get() is None:
        yield
        return
    bar = cast(UUID, create_progress_artifact(0.0, key="progress", description="jobs done"))

    def tell(standing: Standing) -> None:
        update_progress_artifact(bar, standing.percent, _said(standing))

    with progress.logged_by(get_run_logger().info), progress.followed_by(tell):
        yield


def _said(standing: Standing) -> str:
    """Such as ``12 of 84 jobs done, about 95 s left``."""
    said = f"{standing.done} of {standing.total} jobs done"
    left = standing.seconds_left
    return f"{said}, about {left:.0f} s left" if left else said
