"""Evaluate jobs: how good a network is, in full precision or quantized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from modcap.core.serialization import Result
from modcap.data.image_set import ImageSet
from modcap.export import artifact
from modcap.jobs.cost_model import ModuleTimes, evaluation_memory
from modcap.jobs.job import Arithmetic, Cell, Job, Progress, Room, Work
from modcap.jobs.worker_cache import WorkerCache
from modcap.ptq import oscillation

__all__ = ["EvaluateFull", "EvaluateQuantized", "evaluate_full_job", "evaluate_job", "top1"]

_LOSSES = 256  # images that the losses over the depth are measured on


class EvaluateFull(Arithmetic, Work):
    """The accuracy in full precision."""

    kind: ClassVar[str] = "evaluate"

    of: Literal["full precision"] = "full precision"

    @torch.no_grad()
    def run(
        self, job: Job, cache: WorkerCache, needs: Sequence[Result], progress: Progress | None
    ) -> Result:
        network = cache.network(job.inputs["network"], self.device)
        images = cache.images(job.inputs["evaluation"])
        meta = {"top1": top1(network, images, self.device), "images": len(images)}
        return Result(meta=meta)

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
        images = cache.images(job.inputs["evaluation"])
        packed = needs[0].tensors["artifact"].numpy().tobytes()
        quantized = artifact.unpack_network(packed).to(self.device)
        x = cache.images(job.inputs["calibration"]).normalized(0, _LOSSES).to(self.device)
        losses = oscillation.losses(network.partition.modules, quantized.modules_in_order, x)
        return Result(
            meta={
                "top1": top1(quantized, images, self.device),
                "images": len(images),
                "losses": losses,
                "oscillation": oscillation.oscillation(losses),
                "final_error": losses[-1],
            }
        )

    def seconds(self, times: ModuleTimes) -> float:
        return 3 * sum(times.forward) * times.tests


@torch.no_grad()
def top1(
    model: Callable[[Tensor], Tensor], images: ImageSet, device: str = "cpu", batch: int = 250
) -> float:
    """Percentage of images whose largest logit is their label's.

    Raises:
        InputError: there are no images, or labels of no class.
    """
    hits = 0
    images.check_labels(model(images.normalized(0, 1).to(device)).shape[1])
    for x, labels in zip(images.batches(batch), images.labels.split(batch), strict=True):
        hits += int((model(x.to(device)).argmax(1).cpu() == labels).sum())
    return 100 * hits / len(images)


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
