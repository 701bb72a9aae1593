"""MLflow: one run and one registered version for each finished cell, logged once, ever."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tenacity import retry, retry_if_exception, stop_after_attempt, wait_random_exponential

from modcap.core.serialization import canonical, digest
from modcap.flows.registry.aliases import moving_aliases
from modcap.flows.registry.candidate import Move, move_candidate
from modcap.flows.registry.mlflow_runs import (
    PARENT,
    RUN_KEY,
    Parent,
    closing,
    discard,
    experiment_of,
    finish_run,
    first_finished,
    reaching,
    run_url,
    start_run,
)
from modcap.flows.registry.model_files import save_model
from modcap.flows.registry.params import params_of
from modcap.flows.registry.version_tags import PUBLISH_KEY, run_tags, tags_of
from modcap.flows.reports import plots
from modcap.flows.reports.cell_record import Finished
from modcap.flows.reports.chosen_bits import bits_in_words
from modcap.flows.reports.document import report_of
from modcap.flows.reports.link import PAGE
from modcap.flows.reports.page import page_of

from mlflow import MlflowClient  # isort: skip  # after mlflow_runs, which sets what it reads at import
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model

__all__ = [
    "Published",
    "Registered",
    "publish",
    "publish_baseline",
    "publish_cell",
]

_MODEL = "model"  # its name in a run
_NAME, _DIGEST = 500, 36  # characters that MLflow keeps of a dataset's
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
    candidate: Move


def publish(
    finished: Finished, *, experiment: str, model_name: str, opened: str | None = None
) -> Registered:
    """Logs ``finished`` and registers its model, unless that was done before. ``opened`` is a run
    that waits for it.

    Raises:
        InputError: MLflow cannot be reached.
    """
    with reaching() as client:
        run = _publish_run(client, experiment, finished, with_model=True, opened=opened)
        version, move = _register(client, finished, model_name, run.run_id)
    return Registered(run.run_id, run.run_url, model_name, version, move)


def publish_cell(
    finished: Finished, parent: Parent, *, experiment: str, model_name: str | None
) -> Published:
    """Logs a cell of a sweep, nested under ``parent``; registers it where a name is given."""
    with reaching() as client:
        run = _publish_run(client, experiment, finished, model_name is not None, parent)
        if model_name is None:
            return run
        version, move = _register(client, finished, model_name, run.run_id)
    return Registered(run.run_id, run.run_url, model_name, version, move)


def publish_baseline(finished: Finished, of: Registered, key: str, *, experiment: str) -> None:
    """Logs what a run is compared with, nested under it: figures and report, no model.

    Args:
        finished: the baseline.
        of: the run, and its version.
        key: of that run.
        experiment: of both.
    """
    parent = Parent(of.run_id, key, of.run_url)
    with reaching() as client:
        _publish_run(client, experiment, finished, False, parent, whole=False)


def _publish_run(
    client: MlflowClient,
    experiment: str,
    finished: Finished,
    with_model: bool,
    parent: Parent | None = None,
    opened: str | None = None,
    whole: bool = True,
) -> Published:
    number = experiment_of(client, experiment)
    key = finished.key
    if parent is not None:
        key = digest(canonical([finished.key, parent.key, with_model]))
    run_id = first_finished(client, number, key)
    if run_id is None:
        tags = {**run_tags(finished), RUN_KEY: key} | ({PARENT: parent.run_id} if parent else {})
        run_id = opened or start_run(client, number, finished.name, tags)
        with closing(client, run_id):
            if opened:
                client.log_batch(run_id, tags=[RunTag(name, text) for name, text in tags.items()])
            _log(client, run_id, number, finished, with_model, whole)
            run_id = finish_run(client, number, run_id, key)
    elif opened:
        discard(client, opened)  # somebody else was faster
    return Published(run_id, run_url(number, run_id))


def _log(
    client: MlflowClient,
    run_id: str,
    number: str,
    finished: Finished,
    with_model: bool,
    whole: bool,
) -> None:
    params = list(params_of(finished.recipe, sum(finished.selected)))
    params.append(Param("layer_bits", bits_in_words(finished.report["layer_bits"])[:6000]))
    client.log_batch(run_id, params=params)
    metrics = list(_metrics(finished))
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _BATCH])
    with tempfile.TemporaryDirectory() as folder:
        _write_files(Path(folder), finished, whole)
        client.log_artifacts(run_id, folder)
    _log_inputs(client, run_id, _datasets(finished))
    if with_model:
        _log_model(client, run_id, number, finished)
    client.log_batch(run_id, tags=[RunTag("mlflow.note.content", _description(finished))])


def _raced(error: BaseException) -> bool:
    """MLflow looks whether it knows a dataset, and then adds it: of two runs that do so at once,
    its database refuses one."""
    return isinstance(error, MlflowException) and "unique constraint" in str(error).lower()


@retry(
    retry=retry_if_exception(_raced),
    stop=stop_after_attempt(8),
    wait=wait_random_exponential(0.1, 2),
    reraise=True,
)
def _log_inputs(client: MlflowClient, run_id: str, datasets: Sequence[DatasetInput]) -> None:
    client.log_inputs(run_id, datasets)


def _metrics(finished: Finished) -> Iterator[Metric]:
    now = int(time.time() * 1000)
    scale = finished.scale
    single = {
        _legal(scale.label): finished.value,
        f"fp_{_legal(scale.label)}": finished.full,
        "drop": scale.lost(finished.full, finished.value),
        "oscillation": finished.oscillation,
        "artifact_bytes": len(finished.artifact),
        "compression": finished.fp_bytes / len(finished.artifact),
        "seconds": finished.seconds,
        "k": sum(finished.selected),
    }
    chosen = finished.report["allocation"] or {}
    single |= {name: value for name, value in chosen.items() if value is not None}
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


def _write_files(folder: Path, finished: Finished, whole: bool) -> None:
    """The report; where the ``whole`` is wanted, its page and pictures, too."""
    (folder / "report.json").write_text(json.dumps(finished.report, indent=1))
    if not whole:
        return
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
    page = page_of(report_of(finished.report, "this run"), finished.artifact)
    (folder / PAGE).write_text(page, encoding="utf-8")


def _log_model(client: MlflowClient, run_id: str, number: str, finished: Finished) -> None:
    """The logged model, linked to its run; the version will be made of it."""
    logged = client.create_logged_model(
        number, _MODEL, run_id, tags_of(finished), model_type="quantized network"
    )
    made = Model(
        artifact_path=logged.artifact_location,
        run_id=run_id,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / _MODEL
            save_model(place, finished, made)
            client.log_model_artifacts(logged.model_id, str(place))
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
    except BaseException:
        with contextlib.suppress(MlflowException):  # perhaps it was that which is away
            client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")


def _datasets(finished: Finished) -> list[DatasetInput]:
    """The images that the run calibrated and measured on."""
    found = []
    for context, (place, content) in finished.images.items():
        source = json.dumps({"uri": place})
        kind = "s3" if place.startswith("s3://") else "local"
        name = place.rstrip("/").rpartition("/")[2]
        dataset = Dataset(name[:_NAME], content[:_DIGEST], kind, source)
        found.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    return found


def _description(finished: Finished) -> str:
    tags = tags_of(finished)
    joined = [finished.modules[a:b] for a, b in finished.groups if b - a > 1]
    groups = "; ".join(" + ".join(names) for names in joined) or "none"
    scale, words = finished.scale, finished.scale.words
    return (
        f"**{tags['bits']}** by {tags['method']}, k = {tags['k']}, from `{tags['source_uri']}`.\n\n"
        f"{words[:1].upper()}{words[1:]} {scale.said(finished.value)} (full precision "
        f"{scale.said(finished.full)}), "
        f"{len(finished.artifact):,} bytes ({finished.fp_bytes / len(finished.artifact):.1f} times "
        f"smaller), oscillation {finished.oscillation:.3f}.\n\nReconstructed jointly: {groups}.\n\n"
        f"Input: (N, {', '.join(map(str, finished.input_shape))}) float32, preprocessed with "
        f"`{tags['preprocess']}`."
    )


def _register(client: MlflowClient, finished: Finished, name: str, run_id: str) -> tuple[str, Move]:
    """The version of ``name`` that holds this cell, made when missing, and what became of the
    alias of the candidate."""
    own = _versions(client, name, finished.key)
    version = own[0] if own else _make_version(client, finished, name, run_id)
    with moving_aliases(name) as mine:
        move = move_candidate(client, name, version, mine)
    return version, move


def _make_version(client: MlflowClient, finished: Finished, name: str, run_id: str) -> str:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source, model_id = _source(client, run_id)
    made = client.create_model_version(
        name,
        source,
        run_id,
        tags=tags_of(finished),
        description=_description(finished),
        model_id=model_id,
    )
    first, *others = _versions(client, name, finished.key)
    if str(made.version) in others:  # two registered at once: the first one stays
        client.delete_model_version(name, str(made.version))
    return first


def _source(client: MlflowClient, run_id: str) -> tuple[str, str | None]:
    """Where the model of a run lies, and its id; runs from before models had ids kept them."""
    run = client.get_run(run_id)
    made = run.outputs.model_outputs if run.outputs else []
    if not made:
        return f"{run.info.artifact_uri}/{_MODEL}", None
    logged = client.get_logged_model(made[0].model_id)
    return logged.artifact_location, logged.model_id


def _versions(client: MlflowClient, name: str, key: str) -> Sequence[str]:
    found = client.search_model_versions(f"name = '{name}' and tags.`{PUBLISH_KEY}` = '{key}'")
    return [str(v) for v in sorted(int(version.version) for version in found)]
