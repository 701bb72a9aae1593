"""MLflow: one run and one registered version for each finished cell, logged once, ever."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import psutil
import torch
from torch import Tensor

from flows import plots
from modcap.artifact import unpack_network
from modcap.errors import InputError
from modcap.recipe import Recipe
from modcap.results import canonical, digest
from modcap.selection import Span

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")  # read when mlflow is imported
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

__all__ = [
    "Finished",
    "Parent",
    "Published",
    "Registered",
    "experiment_of",
    "finish_parent",
    "link_of",
    "publish",
    "publish_cell",
    "reaching",
    "start_parent",
]

logging.getLogger("mlflow").setLevel(logging.WARNING)

PUBLISH_KEY = "modcap.publish_key"  # of a version: what it is, wherever it was logged
RUN_KEY = "modcap.run_key"  # of a run: equal keys are one run
OWNER = "modcap.owner"  # host/process that makes a run
PARENT = "mlflow.parentRunId"
JOBS = "modcap.jobs"  # keys of the last jobs of a cell: all others follow from what they need
ALIAS = "candidate"
_ABANDONED_MS = 3600_000  # a run of another host that is not finished after this time
_BATCH = 900  # metrics per request; the server takes a thousand


@dataclass(frozen=True)
class Finished:
    """A finished cell: all that is worth logging."""

    key: str
    name: str
    recipe: Recipe
    source: Mapping[str, str]
    input_shape: tuple[int, int, int]
    modules: tuple[str, ...]
    groups: tuple[Span, ...]
    capacities: tuple[float, ...]
    differentials: tuple[float, ...]
    allowed: tuple[bool, ...]
    selected: tuple[bool, ...]
    curves: Mapping[str, Tensor]
    errors: Mapping[str, float]
    losses: tuple[float, ...]
    oscillation: float
    baseline_losses: Mapping[str, tuple[float, ...]]
    fp_top1: float
    top1: float
    artifact: bytes
    fp_bytes: int
    seconds: float
    jobs: tuple[str, ...]
    network_digest: str
    report: Mapping[str, Any]

    @property
    def tags(self) -> dict[str, str]:
        """What a consumer of the registry looks for."""
        return {
            PUBLISH_KEY: self.key,
            "bits": f"W{self.recipe.w_bits}A{self.recipe.a_bits}",
            "k": str(sum(self.selected)),
            "method": self.recipe.method.value,
            "schedule": self.recipe.schedule.value,
            "fp_top1": f"{self.fp_top1:.4f}",
            "top1": f"{self.top1:.4f}",
            "drop": f"{self.fp_top1 - self.top1:.4f}",
            "oscillation": f"{self.oscillation:.4f}",
            "artifact_bytes": str(len(self.artifact)),
            "artifact_digest": hashlib.sha256(self.artifact).hexdigest(),
            JOBS: " ".join(self.jobs),
            "network_digest": self.network_digest,
            "source_digest": self.source["checkpoint_digest"],
            "source_uri": self.source["checkpoint"],
            "preprocess": self.source["preprocess"],
            "recipe_digest": self.recipe.digest,
            "modcap_version": _version(),
        }


@dataclass(frozen=True)
class Parent:
    """The run of a sweep, under which its cells are nested."""

    run_id: str
    key: str
    url: str


@dataclass(frozen=True)
class Published:
    """The run of a cell in MLflow."""

    run_id: str
    run_url: str


@dataclass(frozen=True)
class Registered(Published):
    """A cell that is a version of a registered model too."""

    model_name: str
    model_version: str


def _version() -> str:
    try:
        return importlib.metadata.version("modcap")
    except importlib.metadata.PackageNotFoundError:
        return "source"


@contextlib.contextmanager
def reaching() -> Iterator[MlflowClient]:
    """A client, whose failure to reach the server is an error of one line."""
    try:
        yield MlflowClient()
    except MlflowException as error:
        if "API request to" not in str(error) and "Max retries" not in str(error):
            raise
        where = mlflow.get_tracking_uri()
        raise InputError(
            f"MLflow at {where} cannot be reached: check MLFLOW_TRACKING_URI and that it runs"
        ) from None


def link_of(experiment: str, tags: Mapping[str, str]) -> str:
    """The page that shows the runs with these tags, also those that are still to come."""
    with reaching() as client:
        number = experiment_of(client, experiment)
    wanted = quote(" and ".join(f"tags.{name} = '{value}'" for name, value in tags.items()))
    address = mlflow.get_tracking_uri().rstrip("/")
    return f"{address}/#/experiments/{number}?searchFilter={wanted}"


def publish(finished: Finished, *, experiment: str, model_name: str) -> Registered:
    """Logs ``finished`` and registers its model, unless that was done before.

    Raises:
        InputError: MLflow cannot be reached.
    """
    with reaching() as client:
        run = _publish_run(client, experiment, finished, with_model=True)
        version = _register(client, finished, model_name, run.run_id)
    return Registered(run.run_id, run.run_url, model_name, version)


def publish_cell(
    finished: Finished, parent: Parent, *, experiment: str, model_name: str | None
) -> Published:
    """Logs a cell of a sweep, nested under ``parent``; registers it where a name is given."""
    with reaching() as client:
        run = _publish_run(client, experiment, finished, model_name is not None, parent)
        if model_name is None:
            return run
        version = _register(client, finished, model_name, run.run_id)
    return Registered(run.run_id, run.run_url, model_name, version)


def _publish_run(
    client: MlflowClient,
    experiment: str,
    finished: Finished,
    with_model: bool,
    parent: Parent | None = None,
) -> Published:
    number = experiment_of(client, experiment)
    key = finished.key
    if parent is not None:
        key = digest(canonical([finished.key, parent.key, with_model]))
    run_id = first_finished(client, number, key)
    if run_id is None:
        tags = {**finished.tags, RUN_KEY: key} | ({PARENT: parent.run_id} if parent else {})
        run_id = start_run(client, number, finished.name, tags)
        _log(client, run_id, finished, with_model)
        run_id = finish_run(client, number, run_id, key)
    return Published(run_id, _url(number, run_id))


def start_parent(experiment: str, name: str, key: str) -> Parent:
    """The run of the sweep with this key: the finished one, or a new one."""
    with reaching() as client:
        number = experiment_of(client, experiment)
        run_id = first_finished(client, number, key)
        if run_id is None:
            run_id = start_run(client, number, name, {RUN_KEY: key})
    return Parent(run_id, key, _url(number, run_id))


def finish_parent(
    experiment: str,
    parent: Parent,
    metrics: Mapping[str, float],
    write: Callable[[Path], None],
    nested: Sequence[str],
) -> Parent:
    """Logs the whole of a sweep and nests ``nested`` under the run that stays."""
    with reaching() as client:
        number = experiment_of(client, experiment)
        run_id = first_finished(client, number, parent.key)
        if run_id is None:
            now = int(time.time() * 1000)
            logged = [Metric(name, float(value), now, 0) for name, value in metrics.items()]
            client.log_batch(parent.run_id, metrics=logged)
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder))
                client.log_artifacts(parent.run_id, folder)
            run_id = finish_run(client, number, parent.run_id, parent.key)
        elif run_id != parent.run_id:
            client.delete_run(parent.run_id)  # somebody else was faster
        for cell in nested:
            if client.get_run(cell).data.tags.get(PARENT) != run_id:
                client.set_tag(cell, PARENT, run_id)
    return Parent(run_id, parent.key, _url(number, run_id))


def _url(experiment_id: str, run_id: str) -> str:
    address = mlflow.get_tracking_uri().rstrip("/")
    return f"{address}/#/experiments/{experiment_id}/runs/{run_id}"


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
    """A new run, marked with the process that makes it."""
    owner = f"{socket.gethostname()}/{os.getpid()}"
    run = client.create_run(experiment_id, run_name=name, tags={**tags, OWNER: owner})
    return str(run.info.run_id)


def first_finished(client: MlflowClient, experiment_id: str, key: str) -> str | None:
    """The run of ``key`` that finished first; deletes what dead processes left half made."""
    runs = client.search_runs([experiment_id], f"tags.`{RUN_KEY}` = '{key}'")
    done = [run for run in runs if run.info.status == "FINISHED"]
    for run in runs:
        if run.info.status != "FINISHED" and _abandoned(run):
            client.delete_run(run.info.run_id)
    if not done:
        return None
    return str(min(done, key=lambda run: (run.info.end_time, run.info.run_id)).info.run_id)


def _abandoned(run: Run) -> bool:
    host, _, process = run.data.tags.get(OWNER, "").rpartition("/")
    if host == socket.gethostname():
        return not psutil.pid_exists(int(process))
    return bool(time.time() * 1000 - run.info.start_time > _ABANDONED_MS)


def finish_run(client: MlflowClient, experiment_id: str, run_id: str, key: str) -> str:
    """Ends a run; where somebody else made the same one earlier, that one stays."""
    client.set_terminated(run_id, "FINISHED")
    first = first_finished(client, experiment_id, key) or run_id
    if first != run_id:
        client.delete_run(run_id)
    return first


def _log(client: MlflowClient, run_id: str, finished: Finished, with_model: bool) -> None:
    params = [Param(k, v[:6000]) for k, v in _flat(finished.recipe.model_dump(mode="json"))]
    client.log_batch(run_id, params=params)
    metrics = list(_metrics(finished))
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _BATCH])
    with tempfile.TemporaryDirectory() as folder:
        _write_files(Path(folder), finished)
        if with_model:
            _save_model(Path(folder) / "model", finished)
        client.log_artifacts(run_id, folder)
    client.log_batch(run_id, tags=[RunTag("mlflow.note.content", _description(finished))])


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _metrics(finished: Finished) -> Iterator[Metric]:
    now = int(time.time() * 1000)
    single = {
        "top1": finished.top1,
        "fp_top1": finished.fp_top1,
        "drop": finished.fp_top1 - finished.top1,
        "oscillation": finished.oscillation,
        "artifact_bytes": len(finished.artifact),
        "compression": finished.fp_bytes / len(finished.artifact),
        "seconds": finished.seconds,
        "k": sum(finished.selected),
    }
    for name, value in single.items():
        yield Metric(name, float(value), now, 0)
    for step, loss in enumerate(finished.losses):
        yield Metric("loss_over_depth", loss, now, step)
    for name, points in finished.curves.items():
        for step, loss in points.tolist():
            yield Metric(f"loss/{_legal(name)}", loss, now, int(step))
    for name, error in finished.errors.items():
        yield Metric(f"error/{_legal(name)}", error, now, 0)


def _legal(name: str) -> str:
    return re.sub(r"[^\w.\- /]", "-", name)


def _write_files(folder: Path, finished: Finished) -> None:
    lines = {"this run": finished.losses, **finished.baseline_losses}
    pictures = {"oscillation": plots.oscillation(lines, finished.modules, finished.groups)}
    if finished.capacities:
        pictures["capacity"] = plots.capacity(
            finished.capacities,
            finished.differentials,
            finished.selected,
            finished.allowed,
            finished.modules,
        )
    if any(len(points) for points in finished.curves.values()):
        pictures["reconstruction"] = plots.curves(finished.curves)
    (folder / "plots").mkdir()
    for name, figure in pictures.items():
        (folder / "plots" / f"{name}.png").write_bytes(plots.png(figure))
    (folder / "report.json").write_text(json.dumps(finished.report, indent=1))


def _save_model(folder: Path, finished: Finished) -> None:
    example = np.zeros((1, *finished.input_shape), np.float32)
    with torch.no_grad():
        logits = unpack_network(finished.artifact)(torch.from_numpy(example))
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.float32), (-1, *finished.input_shape))]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, *logits.shape[1:]))]),
    )
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Add type hints", UserWarning)  # the signature says more
        packed = Path(scratch) / "network.safetensors"
        packed.write_bytes(finished.artifact)
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(Path(__file__).with_name("registered_model.py")),
            artifacts={"network": str(packed)},
            signature=signature,
            input_example=example,
            pip_requirements=_requirements(),
        )


def _requirements() -> list[str]:
    """What a consumer needs, pinned to what made the model."""
    names = ("mlflow", "numpy", "pydantic", "safetensors", "torch")
    pins = [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in names]
    return [f"modcap=={_version()}", *pins]


def _description(finished: Finished) -> str:
    tags = finished.tags
    joined = [finished.modules[a:b] for a, b in finished.groups if b - a > 1]
    groups = "; ".join(" + ".join(names) for names in joined) or "none"
    return (
        f"**{tags['bits']}** by {tags['method']}, k = {tags['k']}, from `{tags['source_uri']}`.\n\n"
        f"Top-1 {finished.top1:.2f} % (full precision {finished.fp_top1:.2f} %), "
        f"{len(finished.artifact):,} bytes ({finished.fp_bytes / len(finished.artifact):.1f} times "
        f"smaller), oscillation {finished.oscillation:.3f}.\n\nReconstructed jointly: {groups}.\n\n"
        f"Input: (N, {', '.join(map(str, finished.input_shape))}) float32, preprocessed with "
        f"`{tags['preprocess']}`."
    )


def _register(client: MlflowClient, finished: Finished, name: str, run_id: str) -> str:
    """The version of ``name`` that holds this cell; made, and named candidate, when missing."""
    own = _versions(client, name, finished.key)
    if own:
        return own[0]
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/model"
    made = client.create_model_version(
        name, source, run_id, tags=finished.tags, description=_description(finished)
    )
    first, *others = _versions(client, name, finished.key)
    if str(made.version) in others:  # two registered at once: the first one stays
        client.delete_model_version(name, str(made.version))
    client.set_registered_model_alias(name, ALIAS, first)
    return first


def _versions(client: MlflowClient, name: str, key: str) -> Sequence[str]:
    found = client.search_model_versions(f"name = '{name}' and tags.`{PUBLISH_KEY}` = '{key}'")
    return [str(v) for v in sorted(int(version.version) for version in found)]
