"""Runs in MLflow that are made once, whoever else makes the same at the same time, or died at it.

Every run carries a key; of finished runs with equal keys the one that finished first stays.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from modcap.core.authorities import mend_connection
from modcap.core.errors import Lost, Unavailable
from modcap.core.messages import first_line, without_password

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")  # read when mlflow is imported
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException
from prefect.context import FlowRunContext

__all__ = [
    "PARENT",
    "REASON",
    "RUN_KEY",
    "Parent",
    "closing",
    "closing_parent",
    "discard",
    "experiment_of",
    "fail_run",
    "finish_parent",
    "finish_run",
    "first_finished",
    "reaching",
    "run_url",
    "runs_url",
    "start_parent",
    "start_run",
]

logging.getLogger("mlflow").setLevel(logging.WARNING)

RUN_KEY = "modcap.run_key"  # of a run: equal keys are one run
OWNER = "modcap.owner"  # host/process that makes a run
PARENT = "mlflow.parentRunId"
REASON = "modcap.reason"  # of a run that failed
_ABANDONED_MS = 3600_000  # a run of another host that is not finished after this time


@dataclass(frozen=True)
class Parent:
    """The run of a sweep, under which its cells are nested."""

    run_id: str
    key: str
    url: str


_reached: set[str] = set()  # addresses that answered this process


@contextlib.contextmanager
def reaching() -> Iterator[MlflowClient]:
    """A client, whose failure to reach the server is an error of one line.

    Raises:
        Unavailable: there is no server, or what answers is none, or wants a password.
        Lost: it was there before.
    """
    try:
        yield MlflowClient()
        _reached.add(_address())
    except MlflowException as error:
        reason = str(error)
        if "API request to" not in reason and "Max retries" not in reason:
            raise
        cause = first_line(without_password(reason.rpartition("Caused by ")[2]))
        kind = Lost if _address() in _reached else Unavailable
        mend = "check MLFLOW_TRACKING_URI, that it runs, and its password where it has one"
        raise kind(
            f"MLflow at {_address()} cannot be reached ({cause}): "
            + mend_connection("MLflow", reason, mend)
        ) from None


def runs_url(experiment: str) -> str:
    """The page that shows the runs of an experiment, also those that are still to come."""
    with reaching() as client:
        return f"{_address()}/#/experiments/{experiment_of(client, experiment)}/runs"


def _address() -> str:
    return without_password(mlflow.get_tracking_uri().rstrip("/"))


def start_parent(experiment: str, name: str, key: str) -> Parent:
    """The run of the sweep with this key: the finished one, or a new one."""
    with reaching() as client:
        number = experiment_of(client, experiment)
        run_id = first_finished(client, number, key)
        if run_id is None:
            run_id = start_run(client, number, name, {RUN_KEY: key})
    return Parent(run_id, key, run_url(number, run_id))


@contextlib.contextmanager
def closing_parent(parent: Parent) -> Iterator[None]:
    """Ends the run of a sweep as failed where what is done inside raises anything at all."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(Unavailable), reaching() as client:
            fail_run(client, parent.run_id, first_line(error))
        raise


def finish_parent(
    experiment: str,
    parent: Parent,
    metrics: Mapping[str, float],
    write: Callable[[Path], None],
    nested: Sequence[str],
    failure: str = "",
) -> Parent:
    """Logs the whole of a sweep and nests ``nested`` under the run that stays; with a ``failure``
    it ends as failed, and the next sweep of the same cells has a run of its own."""
    with reaching() as client:
        number = experiment_of(client, experiment)
        run_id = first_finished(client, number, parent.key)
        if run_id is None:
            _restore(client, parent.run_id)
            now = int(time.time() * 1000)
            logged = [Metric(name, float(value), now, 0) for name, value in metrics.items()]
            client.log_batch(parent.run_id, metrics=logged)
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder))
                client.log_artifacts(parent.run_id, folder)
            if failure:
                run_id = parent.run_id
                fail_run(client, run_id, failure)
            else:
                run_id = finish_run(client, number, parent.run_id, parent.key)
        elif run_id != parent.run_id:
            discard(client, parent.run_id)  # somebody else was faster
        for cell in nested:
            if client.get_run(cell).data.tags.get(PARENT) != run_id:
                client.set_tag(cell, PARENT, run_id)
    return Parent(run_id, parent.key, run_url(number, run_id))


def run_url(experiment_id: str, run_id: str) -> str:
    """The page of a run."""
    return f"{_address()}/#/experiments/{experiment_id}/runs/{run_id}"


def experiment_of(client: MlflowClient, name: str) -> str:
    """The id of an experiment, made where it is missing."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # somebody else was first
            found = client.get_experiment_by_name(name)
            assert found is not None
    elif found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def start_run(client: MlflowClient, experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
    """A new run, marked with the process that makes it, and with who asked for it. Those of
    processes of this host that died are ended."""
    _end_abandoned(client, experiment_id)
    owner = f"{socket.gethostname()}/{os.getpid()}"
    made = {**_source(), **tags, OWNER: owner}
    run = client.create_run(experiment_id, run_name=name, tags=made)
    return str(run.info.run_id)


def _source() -> dict[str, str]:
    """What MLflow's page shows as source and user, and the flow run that it is part of."""
    context = FlowRunContext.get()
    found = {"mlflow.user": _user(), "mlflow.source.type": "LOCAL", "mlflow.source.name": "modcap"}
    if context is not None and context.flow_run is not None:
        flow, run = context.flow.name if context.flow else "", context.flow_run
        found |= {"mlflow.source.name": f"modcap {flow}", "prefect_flow_run": run.name}
    return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        return str(os.getuid())


def _end_abandoned(client: MlflowClient, experiment_id: str) -> None:
    host = socket.gethostname()
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        if run.data.tags.get(OWNER, "").startswith(f"{host}/") and _abandoned(run):
            fail_run(client, run.info.run_id, "its process died", "KILLED")


@contextlib.contextmanager
def closing(client: MlflowClient, run_id: str) -> Iterator[None]:
    """Ends the run as failed, and says why, where what is done inside raises anything at all."""
    try:
        yield
    except BaseException as error:
        fail_run(client, run_id, first_line(error))
        raise


def fail_run(client: MlflowClient, run_id: str, reason: str, status: str = "FAILED") -> None:
    """Ends a run as failed, where MLflow is there to be told, and it has not ended already."""
    with contextlib.suppress(MlflowException):
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_tag(run_id, REASON, reason)
            client.set_terminated(run_id, status)


def first_finished(
    client: MlflowClient, experiment_id: str, key: str, tag: str = RUN_KEY
) -> str | None:
    """The run with this key, as ``tag``, that finished first; deletes what dead processes left half
    made."""
    runs = client.search_runs([experiment_id], f"tags.`{tag}` = '{key}'")
    done = [run for run in runs if run.info.status == "FINISHED"]
    for run in runs:
        if run.info.status != "FINISHED" and _abandoned(run):
            discard(client, run.info.run_id)
    if not done:
        return None
    return str(min(done, key=lambda run: (run.info.end_time, run.info.run_id)).info.run_id)


def discard(client: MlflowClient, run_id: str) -> None:
    """Deletes a run, if that was not done yet."""
    if client.get_run(run_id).info.lifecycle_stage == "active":
        client.delete_run(run_id)


def _restore(client: MlflowClient, run_id: str) -> None:
    """Takes a run back that somebody else held for abandoned: its host was another one's."""
    if client.get_run(run_id).info.lifecycle_stage == "deleted":
        client.restore_run(run_id)


def _abandoned(run: Run) -> bool:
    host, _, process = run.data.tags.get(OWNER, "").rpartition("/")
    if host == socket.gethostname():
        return not psutil.pid_exists(int(process))
    return bool(time.time() * 1000 - run.info.start_time > _ABANDONED_MS)


def finish_run(client: MlflowClient, experiment_id: str, run_id: str, key: str) -> str:
    """Ends a run; where somebody else made the same one earlier, that one stays."""
    _restore(client, run_id)
    client.set_terminated(run_id, "FINISHED")
    first = first_finished(client, experiment_id, key) or run_id
    if first != run_id:
        discard(client, run_id)
    return first
