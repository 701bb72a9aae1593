"""What a gate measures: a registered version beside full precision, on the gate's images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
from mlflow.entities.model_registry import ModelVersion

from modcap.checkpoints.checkpoint import check_input
from modcap.core.errors import InputError
from modcap.data import classes
from modcap.data.doubts import chance_of, doubt_of_accuracy, doubt_of_pixels
from modcap.data.image_set import ImageSet
from modcap.data.preprocess import Preprocess
from modcap.data.sources import Split
from modcap.export.artifact import QuantizedNetwork
from modcap.flows.registry.figures import Figures, figures_of, metric_for
from modcap.flows.registry.model_files import CLASSES
from modcap.flows.registry.placed import device_here, placed
from modcap.flows.registry.stored_network import stored_network
from modcap.flows.registry.version_artifact import artifact_of_version
from modcap.flows.requests.gate import Gate
from modcap.flows.requests.request_images import evaluation_images, images_of, measured, pool_of
from modcap.graph.outputs import join_values
from modcap.ptq.measured import Scale
from modcap.ptq.metrics import Metric
from modcap.tasks.storage.store import Store

__all__ = ["Measured", "gate_metric", "gate_split", "measure_version"]


@dataclass(frozen=True)
class Measured:
    version: ModelVersion
    figures: Figures
    images: int
    said: str  # which images
    bytes: int
    doubt: str | None
    notes: tuple[str, ...] = ()  # what else may be wrong with the images

    @property
    def scale(self) -> Scale:
        return self.figures.scale

    @property
    def drop(self) -> float:
        return self.figures.lost


def gate_split(gate: Gate, versions: Sequence[ModelVersion]) -> Split:
    """All images of the gate; those of tests, where a version's calibration drew from them: by
    content, since the same images may lie in several places, and read once for each size."""
    forms = {v.version: (_tag(v, "preprocess"), _classes(v)) for v in versions}
    pools = {
        form: pool_of(gate.data, Preprocess.written(form[0]), form[1]).digest
        for form in set(forms.values())
    }
    for version in versions:
        pool = pools[forms[version.version]]
        if version.tags.get("data_digest", pool) == pool:
            return "evaluation"
    return "all"


def _classes(version: ModelVersion) -> tuple[str, ...] | None:
    """The names that number a version's classes, where it was made with such."""
    wanted = version.tags.get("classes_digest")
    if wanted is None:
        return None
    where = f"models:/{version.name}/{version.version}/{CLASSES}"
    with TemporaryDirectory() as folder:
        file = Path(mlflow.artifacts.download_artifacts(artifact_uri=where, dst_path=folder))
        found = classes.of_json(file, where)
    if classes.digest(found) != wanted:
        raise InputError(f"{where} was changed since it was registered: register the model again")
    return found


def measure_version(version: ModelVersion, gate: Gate, split: Split, store: Store) -> Measured:
    """The accuracy of a version, and of the network that it was made from, on the gate's images."""
    network, size = artifact_of_version(version)
    transform = Preprocess.written(_tag(version, "preprocess"))
    known = _classes(version)
    tests = evaluation_images(gate.data, transform, gate.eval_images, known, split=split)
    images = images_of(tests, transform)
    images.check_shape(network.input_shape)
    outputs = check_input(network, images.normalized(0, 2))
    if outputs is not None:
        classes.check_count(tests.classes, outputs, f"data {gate.data}")
    metric = gate_metric(gate, network, images)
    full = stored_network(_tag(version, "network_digest"), store)
    device = device_here(gate.device)
    rows = placed(network, device)
    figures = figures_of(metric, lambda x: join_values(rows(x)), placed(full, device), images)
    said = measured(tests, gate.data)
    doubt = None
    if figures.is_top1 and outputs is not None:
        doubt = doubt_of_accuracy(figures.full, len(images), chance_of(tests, outputs))
    notes = (None if known else classes.doubt(tests.classes), doubt_of_pixels(tests, transform))
    there = tuple(filter(None, notes))
    return Measured(version, figures, len(images), said, size, doubt, there)


def gate_metric(gate: Gate, network: QuantizedNetwork, images: ImageSet) -> Metric:
    """By which the gate measures: a version's own tags name no code."""
    asked = "top1" if gate.min_top1 is not None else gate.metric
    try:
        return metric_for(asked, network.rows, network.outputs, images)
    except InputError as error:
        if gate.min_top1 is None:
            raise
        raise InputError(
            f"--min-top1 cannot be measured on {gate.data} ({error}); or ask for --max-drop or "
            "--against, by agreement or relative error"
        ) from None


def _tag(version: ModelVersion, name: str) -> str:
    if name not in version.tags:
        place = f"{version.name} version {version.version}"
        raise InputError(f"{place} was not made by modcap: it has no tag {name}")
    return str(version.tags[name])
