"""MLflow: one run and one registered version for each finished cell, logged once, ever."""

from __future__ import annotations

import importlib.metadata
import json
import re
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modcap.core.serialization import canonical, digest
from modcap.export import Export, Known, save
from modcap.export.artifact import unpack_network
from modcap.flows.registry.aliases import moving_aliases
from modcap.flows.registry.mlflow_runs import (
    PARENT,
    RUN_KEY,
    Parent,
    closing,
    experiment_of,
    finish_run,
    first_finished,
    reaching,
    run_url,
    start_run,
)
from modcap.flows.registry.version_tags import (
    PUBLISH_KEY,
    below_version,
    tags_of,
    version_of_modcap,
)
from modcap.flows.reports import plots
from modcap.flows.reports.cell_record import Finished
from modcap.tasks.storage.lease import Lease

import mlflow  # isort: skip  # after modcap.flows.registry.mlflow_runs, which sets what it reads at import
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

__all__ = [
    "Published",
    "Registered",
    "publish",
    "publish_cell",
    "sources_of",
]

ALIAS = "candidate"
CLASSES = "classes.json"  # below the version
_BATCH = 900  # metrics per request; the server takes a thousand


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


def sources_of(model_name: str) -> set[str]:
    """Where the versions of a registered model come from; '' for those that modcap did not make.

    Raises:
        Unavailable: MLflow cannot be reached.
    """
    with reaching() as client:
        versions = client.search_model_versions(f"name = '{model_name}'")
    return {version.tags.get("source_uri", "") for version in versions}


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
        tags = {**tags_of(finished), RUN_KEY: key} | ({PARENT: parent.run_id} if parent else {})
        run_id = start_run(client, number, finished.name, tags)
        with closing(client, run_id):
            _log(client, run_id, finished, with_model)
            run_id = finish_run(client, number, run_id, key)
    return Published(run_id, run_url(number, run_id))


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
    network = unpack_network(finished.artifact)
    with torch.no_grad():
        logits = network(torch.from_numpy(example))
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
            model_config={"artifact_digest": finished.artifact_digest},
            signature=signature,
            input_example=example,
            pip_requirements=_requirements(),
        )
    if finished.classes:
        (folder / CLASSES).write_text(json.dumps(finished.classes))
    _export(folder, finished)


def _export(folder: Path, finished: Finished) -> None:
    tags = tags_of(finished)
    digests = {name: value for name, value in tags.items() if name.endswith("_digest") and value}
    del digests["artifact_digest"]  # which every export holds
    recipe = finished.recipe.model_dump(mode="json")
    known = Known(recipe, digests, tags["preprocess"], tuple(finished.classes or ()))
    for name in finished.exports:
        (folder / name).mkdir()
        save(Export(finished.artifact, known=known), name, folder / below_version(name))


def _requirements() -> list[str]:
    """What a consumer needs, pinned to what made the model."""
    names = ("mlflow", "numpy", "pydantic", "safetensors", "torch")
    pins = [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in names]
    return [f"modcap=={version_of_modcap()}", *pins]


def _description(finished: Finished) -> str:
    tags = tags_of(finished)
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
    version = own[0] if own else _make_version(client, finished, name, run_id)
    with moving_aliases(name) as mine:
        _make_candidate(client, name, version, mine)
    return version


def _make_version(client: MlflowClient, finished: Finished, name: str, run_id: str) -> str:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/model"
    made = client.create_model_version(
        name, source, run_id, tags=tags_of(finished), description=_description(finished)
    )
    first, *others = _versions(client, name, finished.key)
    if str(made.version) in others:  # two registered at once: the first one stays
        client.delete_model_version(name, str(made.version))
    return first


def _make_candidate(client: MlflowClient, name: str, version: str, mine: Lease) -> None:
    """Gives ``version`` the alias unless a later one has it: a crash, or another driver, may have
    come between a version and its alias."""
    aliases = client.get_registered_model(name).aliases
    if int(aliases.get(ALIAS, 0)) < int(version):
        mine.check()
        client.set_registered_model_alias(name, ALIAS, version)


def _versions(client: MlflowClient, name: str, key: str) -> Sequence[str]:
    found = client.search_model_versions(f"name = '{name}' and tags.`{PUBLISH_KEY}` = '{key}'")
    return [str(v) for v in sorted(int(version.version) for version in found)]
