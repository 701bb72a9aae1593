"""Evaluate jobs: how good a network is, in full precision or quantized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch

from modcap.core.serialization import Result
from modcap.export import artifact
from modcap.jobs.cost_model import ModuleTimes, evaluation_memory
from modcap.jobs.job import Arithmetic, Cell, Job, Progress, Room, Work
from modcap.jobs.worker_cache import WorkerCache
from modcap.ptq import oscillation
from modcap.ptq.metrics import Rows, default_metric

__all__ = ["EvaluateFull", "EvaluateQuantized", "evaluate_full_job", "evaluate_job"]

_LOSSES = 256  # images that the losses over the depth are measured on


class EvaluateFull(Arithmetic, Work):
    """The accuracy in full precision."""

    kind: ClassVar[str] = "evaluate"

    of: Literal["full precision"] = "full precision"

    @torch.no_grad()
    def run(
        self, job: Job, cache: WorkerCache, needs: Sequence[Result], progress: Progress | None
    ) -> Result:
        full = cache.network(job.inputs["network"], self.device)
        return Result(meta=_measured(job, cache, full, self.device))

    def seconds(self, times: ModuleTimes) -> float:
        return sum(times.forward) * times.tests


class EvaluateQuantized(Arithmetic, Work):
    """The accuracy of an artifact, and its losses over the depth of the network."""

    kind: ClassVar[str] = "evaluate"

    of: Literal["quantized"] = "quantized"

    @torch.no_grad()
    def run(
        self, job: Job, cache: WorkerCache, needs: Sequence[Result], progress: Progress | None
    ) -> Result:
        network = cache.network(job.inputs["network"], self.device)
        packed = needs[0].tensors["artifact"].numpy().tobytes()
        quantized = artifact.unpack_network(packed).to(self.device)
        x = cache.images(job.inputs["calibration"]).normalized(0, _LOSSES).to(self.device)
        losses = oscillation.losses(network.partition.modules, quantized.modules_in_order, x)
        return Result(
            meta={
                **_measured(job, cache, quantized.rows, self.device),
                "losses": losses,
                "oscillation": oscillation.oscillation(losses),
                "final_error": losses[-1],
            }
        )

    def seconds(self, times: ModuleTimes) -> float:
        return 3 * sum(times.forward) * times.tests


def _measured(job: Job, cache: WorkerCache, network: Rows, device: str) -> dict[str, Any]:
    """The value of the metric that fits network and images; top-1 under its own name."""
    full = cache.network(job.inputs["network"], device)
    images = cache.images(job.inputs["evaluation"])
    shape = full(images.normalized(0, 1).to(device)).shape
    metric = default_metric(len(full.outputs), shape, images)
    value = metric.measure(network, full, images, device)
    named = {"top1": value} if metric.name == "top1" else {"metric": metric.name, "value": value}
    return named | {"images": len(images)}


def evaluate_job(cell: Cell, assemble: str) -> Job:
    """Of what the job ``assemble`` packed."""
    work = EvaluateQuantized(**Arithmetic.fields_of(cell.recipe))
    inputs = cell.inputs("calibration", "evaluation")
    return Job(work, inputs, (assemble,), f"evaluate {cell.name}", _room(cell))


def evaluate_full_job(cell: Cell) -> Job:
    """Of full precision."""
    work = EvaluateFull(**Arithmetic.fields_of(cell.recipe))
    return Job(work, cell.inputs("evaluation"), (), "evaluate full precision", _room(cell))


def _room(cell: Cell) -> Room:
    return Room.of(cell.recipe, evaluation_memory(cell.network, cell.pixels))
