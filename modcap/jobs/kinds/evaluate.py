"""Evaluate jobs: how good a network is, in full precision or quantized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from modcap.core.named import sparse
from modcap.core.serialization import Result
from modcap.data.image_set import ImageSet
from modcap.export import artifact
from modcap.export.artifact import QuantizedNetwork
from modcap.graph.devices import move
from modcap.graph.network import Network
from modcap.graph.outputs import named_values, separate
from modcap.jobs.cost_model import ModuleTimes, evaluation_memory
from modcap.jobs.job import Arithmetic, Cell, Job, Progress, Room, Work
from modcap.jobs.worker_cache import WorkerCache
from modcap.ptq import oscillation
from modcap.ptq.measured import TOP1
from modcap.ptq.metric_name import MetricName
from modcap.ptq.metrics import Metric, Rows, chosen_metric, predictions
from modcap.ptq.relative_error import RelativeError
from modcap.quantization.clipping import watching_activations

__all__ = ["EvaluateFull", "EvaluateQuantized", "evaluate_full_job", "evaluate_job"]

_LOSSES = 256  # images that the losses over the depth are measured on


class EvaluateFull(Arithmetic, Work):
    """How good full precision is, by the metric that is wanted."""

    kind: ClassVar[str] = "evaluate"

    of: Literal["full precision"] = "full precision"
    metric: MetricName = sparse(MetricName())

    @torch.no_grad()
    def run(
        self, job: Job, cache: WorkerCache, needs: Sequence[Result], progress: Progress | None
    ) -> Result:
        full = cache.network(job.inputs["network"], self.device)
        images = cache.images(job.inputs["evaluation"])
        metric = _metric(self.metric, full, images, self.device)
        if metric.ideal is not None:
            return Result(meta=_figure(metric, metric.ideal, images))
        return _measured(metric, full, full, images, self.device, self.pass_images)

    def seconds(self, times: ModuleTimes) -> float:
        return sum(times.forward) * times.tests


class EvaluateQuantized(Arithmetic, Work):
    """How good an artifact is, by the metric that is wanted, and its losses over the depth of the
    network."""

    kind: ClassVar[str] = "evaluate"

    of: Literal["quantized"] = "quantized"
    metric: MetricName = sparse(MetricName())

    @torch.no_grad()
    def run(
        self, job: Job, cache: WorkerCache, needs: Sequence[Result], progress: Progress | None
    ) -> Result:
        network = cache.network(job.inputs["network"], self.device)
        images = cache.images(job.inputs["evaluation"])
        packed = needs[0].tensors["artifact"].numpy().tobytes()
        quantized = move(artifact.unpack_network(packed), torch.device(self.device))
        x = cache.images(job.inputs["calibration"]).normalized(0, _LOSSES).to(self.device)
        modules = quantized.modules_in_order
        with watching_activations(modules) as seen:
            losses = oscillation.losses(network.partition.modules, modules, x, self.pass_images)
        metric = _metric(self.metric, network, images, self.device)
        rows, batch = quantized.rows, self.pass_images
        measured = _measured(metric, rows, network, images, self.device, batch)
        depth = {
            "losses": losses,
            "oscillation": oscillation.oscillation(losses),
            "final_error": losses[-1],
            "activations": {name: each.meta for name, each in seen.items()},
            **({"outputs": _errors(quantized, network, x, batch)} if network.outputs else {}),
        }
        return Result(measured.tensors, measured.meta | depth)

    def seconds(self, times: ModuleTimes) -> float:
        return sum(times.forward) * (times.tests + 3 * _LOSSES)


def _metric(name: MetricName, full: Network, images: ImageSet, device: str) -> Metric:
    shape = full(images.normalized(0, 1).to(device)).shape
    return chosen_metric(name, full.outputs, shape, images)


def _measured(
    metric: Metric, network: Rows, full: Network, images: ImageSet, device: str, batch: int | None
) -> Result:
    """The value of the metric; top-1 with all that it is the sum of."""
    if metric.name == TOP1:
        return _of_classes(network, images, device, batch)
    value = metric.measure(network, full, images, device, batch)
    return Result(meta=_figure(metric, value, images))


def _figure(metric: Metric, value: float, images: ImageSet) -> dict[str, Any]:
    return {**metric.scale.fields, "value": value, "images": len(images)}


def _errors(
    quantized: QuantizedNetwork, full: Network, x: Tensor, batch: int
) -> list[dict[str, Any]]:
    """The relative error of each of several outputs, on calibration images."""
    errors = {output.name: RelativeError() for output in full.outputs}
    for part in x.split(batch):
        found, exact = (separate(rows, full.outputs) for rows in (quantized.rows(part), full(part)))
        for (name, value), (_, wanted) in zip(*map(named_values, (found, exact)), strict=True):
            errors[name].add(value, wanted)
    shapes = {output.name: list(output.shape) for output in full.outputs}
    return [
        {"name": name, "shape": shapes[name], "error": error.value}
        for name, error in errors.items()
    ]


def _of_classes(network: Rows, images: ImageSet, device: str, batch: int | None = None) -> Result:
    """Accuracy, also of each class, and what was predicted: agreement is a comparison of that."""
    found = predictions(network, images, device, batch)
    assert images.labels is not None  # else there were no predictions
    hits = images.labels[found == images.labels]
    meta = {
        "top1": 100 * len(hits) / len(images),
        "images": len(images),
        "class_images": torch.bincount(images.labels).tolist(),
        "class_hits": torch.bincount(hits, minlength=int(images.labels.max()) + 1).tolist(),
    }
    return Result({"predictions": found.to(torch.int32)}, meta)


def evaluate_job(cell: Cell, assemble: str) -> Job:
    """Of what the job ``assemble`` packed."""
    work = EvaluateQuantized(metric=cell.metric, **Arithmetic.fields_of(cell))
    inputs = cell.inputs("calibration", "evaluation")
    return Job(work, inputs, (assemble,), f"evaluate {cell.name}", _room(cell))


def evaluate_full_job(cell: Cell) -> Job:
    """Of full precision."""
    work = EvaluateFull(metric=cell.metric, **Arithmetic.fields_of(cell))
    return Job(work, cell.inputs("evaluation"), (), "evaluate full precision", _room(cell))


def _room(cell: Cell) -> Room:
    return Room.of(cell.recipe, evaluation_memory(cell.network))
