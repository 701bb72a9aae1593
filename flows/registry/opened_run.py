"""The MLflow run of a quantization, which is there from its start, and follows its jobs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from modcap.core.errors import Unavailable
from modcap.core.messages import first_line
from modcap.core.serialization import canonical, digest
from modcap.flows.execution.followers import Standing
from modcap.flows.execution.progress import Progress
from modcap.flows.registry.mlflow_runs import (
    discard,
    experiment_of,
    fail_run,
    first_finished,
    reaching,
    run_url,
    start_run,
)
from modcap.flows.registry.params import params_of
from modcap.flows.requests.request import Ready
from modcap.jobs.job import REVISION

from mlflow import MlflowClient  # isort: skip  # after mlflow_runs, which sets what it reads at import
from mlflow.entities import Metric

__all__ = ["Opened", "opened_run"]

_KEY = "modcap.request_key"  # of a run: equal keys are one request


class Opened:
    """The run of a request.

    Attributes:
        run_id: of the one that was opened; None where an equal request has a finished one.
        url: of either.
    """

    def __init__(self, run_id: str | None, url: str) -> None:
        self.run_id, self.url = run_id, url


@contextlib.contextmanager
def opened_run(experiment: str, prepared: Ready, progress: Progress) -> Iterator[Opened]:
    """The run of a quantization while it is made: with its recipe, and how far it is; it ends as
    failed where anything is raised inside. Who publishes the result ends it.

    Raises:
        Unavailable: MLflow cannot be reached.
    """
    opened = _open(experiment, prepared)
    progress.note(f"MLflow run: {opened.url}")
    if opened.run_id is None:
        yield opened
        return
    try:
        with progress.followed_by(_Live(opened.run_id)):
            yield opened
    except BaseException as error:
        with contextlib.suppress(Unavailable), reaching() as client:
            fail_run(client, opened.run_id, first_line(error))
        raise


def _open(experiment: str, prepared: Ready) -> Opened:
    key = _key(prepared)
    with reaching() as client:
        number = experiment_of(client, experiment)
        found = first_finished(client, number, key, _KEY)
        if found is not None:
            return Opened(None, run_url(number, found))
        run_id = start_run(client, number, prepared.cell.name, {_KEY: key})
        try:
            client.log_batch(run_id, params=list(params_of(prepared.cell.recipe)))
        except BaseException:
            discard(client, run_id)
            raise
    return Opened(run_id, run_url(number, run_id))


def _key(prepared: Ready) -> str:
    """Equal requests, of one name and by one revision, have one run."""
    cell, name = prepared.cell, prepared.request.model_name
    made = [cell.network.digest, cell.calibration, cell.evaluation, cell.recipe.digest]
    metric = cell.metric.model_dump(mode="json")
    return digest(canonical(["quantize", REVISION, made, name, cell.exports, metric]))


class _Live:
    """Logs how far a run is, below ``live/``."""

    def __init__(self, run_id: str) -> None:
        self._client, self._run_id = MlflowClient(), run_id
        self._start, self._errors = time.monotonic(), 0

    def __call__(self, standing: Standing) -> None:
        now, step = int(time.time() * 1000), int(time.monotonic() - self._start)
        found = {"percent_done": standing.percent}
        if standing.seconds_left is not None:
            found["seconds_left"] = standing.seconds_left
        if standing.losses:
            found["loss"] = sum(standing.losses.values()) / len(standing.losses)
        metrics = [Metric(f"live/{name}", value, now, step) for name, value in found.items()]
        new = list(enumerate(standing.errors))[self._errors :]
        metrics += [Metric("live/group_error", error, now, index) for index, error in new]
        self._client.log_batch(self._run_id, metrics=metrics)
        self._errors = len(standing.errors)
