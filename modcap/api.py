"""The front door of the library: quantize a model in this process, without any server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modcap.core.errors import InputError
from modcap.core.serialization import Result
from modcap.data.image_set import ImageSet, as_input
from modcap.data.preprocess import Preprocess
from modcap.export import Known
from modcap.export.artifact import QuantizedNetwork, unpack_network
from modcap.graph.network import Network, build
from modcap.jobs.job import Cell, Job
from modcap.jobs.kinds.allocate import refuse_impossible_bounds
from modcap.jobs.plan import plan
from modcap.jobs.run_job import run_job
from modcap.jobs.worker_cache import WorkerCache
from modcap.ptq.selection import Span
from modcap.recipe import Recipe

__all__ = ["Quantized", "quantize"]


@dataclass(frozen=True)
class Quantized:
    """What :func:`quantize` returns.

    Attributes:
        network: maps (N, C, H, W) float32 to logits; integer weights inside.
        artifact: the packed network, for a file; :func:`modcap.load` reads it.
        modules: names of the modules, in order.
        groups: which modules were reconstructed jointly.
        losses: relative loss of each module behind the quantized prefix.
        oscillation: of these losses.
        results: result of every job by its key.
    """

    network: QuantizedNetwork
    artifact: bytes
    modules: tuple[str, ...]
    groups: tuple[Span, ...]
    losses: tuple[float, ...]
    oscillation: float
    results: dict[str, Result]

    def save(self, path: str | Path) -> None:
        """Writes the artifact to a file; :func:`modcap.load` reads it.

        Raises:
            InputError: the path is wrong.
        """
        self.export("safetensors", path)

    def export(self, format: str, path: str | Path, opset: int = 25) -> dict[str, Any]:  # noqa: A002
        """Writes it in another format to a file; see :mod:`modcap.export`.

        Args:
            format: onnx, pt2, encodings or safetensors.
            path: of the file.
            opset: of ONNX files: 25, 21 or 13.

        Returns:
            What is to be said of it: bytes, agreement with the artifact, …

        Raises:
            InputError: the network has no form in this format, or the path is wrong.
        """
        from modcap import export

        return export.save(export.Export(self.artifact, opset), format, path)


@torch.inference_mode(False)
@torch.enable_grad()
def quantize(
    model: nn.Module | torch.export.ExportedProgram | Network,
    images: Tensor,
    recipe: Recipe | None = None,
    progress: Callable[[Job, int, int, float], None] | None = None,
    preprocess: Preprocess | str = "",
    classes: Sequence[str] = (),
) -> Quantized:
    """Quantizes ``model`` by ``recipe``, calibrated on ``images``.

    The caller's model is not changed. The same jobs run as on a cluster, one after another.

    Args:
        model: any image classifier that torch.fx or torch.export captures, in float32.
        images: (N, C, H, W), preprocessed as for the model; all N are used, in float32.
        recipe: default ``Recipe.preset("quick")``.
        progress: told (job, step, steps, loss) while a job optimises.
        preprocess: what was done to ``images``, as ``--preprocess`` takes it; the artifact, and
            what is exported of it, says so.
        classes: names of the logits, in their order; likewise.

    Raises:
        InputError: the model cannot be captured or holds NaN, or recipe and images do not fit.

    Example:
        >>> recipe = Recipe.preset("quick", w_bits=4, a_bits=4)
        >>> logits = quantize(model, images, recipe).network(images)  # doctest: +SKIP
    """
    recipe = recipe or Recipe.preset("quick")
    images = as_input(images)
    if recipe.optimises and len(images) < recipe.optimiser.batch_size:
        raise InputError(
            f"{len(images)} calibration images are fewer than batch_size "
            f"{recipe.optimiser.batch_size}: give more images, or a smaller batch_size"
        )
    if not images.isfinite().all():
        raise InputError("the calibration images hold NaN or infinity: take those out")
    images = images.detach().clone() if images.is_inference() else images.detach()
    network = model if isinstance(model, Network) else build(model, images[:2])
    if images.shape[1:] != network.input_shape:
        raise InputError(
            f"images are of shape {tuple(images.shape)}, and the network takes (N, "
            f"{', '.join(map(str, network.input_shape))})"
        )
    channels = images.shape[1]
    unlabelled = torch.zeros(len(images), dtype=torch.int64)
    calibration = ImageSet(images, unlabelled, (0.0,) * channels, (1.0,) * channels)
    known = Known(preprocess=_written(preprocess), classes=tuple(classes))
    refuse_impossible_bounds(network, recipe)
    cell = Cell(network, calibration.digest, calibration.digest, recipe, known=known)
    bench = WorkerCache.holding({network.digest: network, calibration.digest: calibration})
    results = _run_all(cell, bench, progress)
    final = plan([cell], results.get).cells[0]
    artifact = results[final.assemble].tensors["artifact"].numpy().tobytes()
    evaluated: dict[str, Any] = results[final.evaluate].meta
    return Quantized(
        unpack_network(artifact),
        artifact,
        network.partition.names,
        final.groups,
        tuple(evaluated["losses"]),
        evaluated["oscillation"],
        results,
    )


def _written(preprocess: Preprocess | str) -> str:
    """As artifacts say it; checked."""
    parsed = Preprocess.parse(preprocess) if isinstance(preprocess, str) and preprocess else None
    return str(parsed or preprocess)


def _run_all(
    cell: Cell, bench: WorkerCache, progress: Callable[[Job, int, int, float], None] | None
) -> dict[str, Result]:
    """Runs the plan of ``cell``, planned again whenever a selection opens more of it."""
    results: dict[str, Result] = {}
    threads = torch.get_num_threads()
    try:
        while any(job.key not in results for job in plan([cell], results.get).jobs):
            for job in plan([cell], results.get).jobs:
                if job.key not in results:
                    needs = [results[key] for key in job.needs]
                    results[job.key] = run_job(job, bench, needs, _bound(progress, job))
    finally:
        torch.set_num_threads(threads)
    return results


def _bound(
    progress: Callable[[Job, int, int, float], None] | None, job: Job
) -> Callable[[int, int, float], None] | None:
    if progress is None or not job.work.steps:
        return None
    return lambda step, steps, loss: progress(job, step, steps, loss)
