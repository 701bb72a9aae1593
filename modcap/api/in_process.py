"""Quantizes a model in this process: the jobs of one plan, one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modcap.api.given_images import Batches, images_of
from modcap.api.progress_bar import ProgressBar
from modcap.api.quantized import Quantized
from modcap.core.errors import InputError
from modcap.core.messages import parse
from modcap.core.serialization import Result
from modcap.data.image_set import ImageSet
from modcap.data.preprocess import Preprocess
from modcap.export import Known
from modcap.export.artifact import unpack_network
from modcap.graph.network import Network, build
from modcap.jobs.job import Cell, Job
from modcap.jobs.kinds.allocate import refuse_impossible_bounds
from modcap.jobs.plan import CellPlan, plan
from modcap.jobs.run_job import run_job
from modcap.jobs.worker_cache import WorkerCache
from modcap.ptq.measured import TOP1, Scale
from modcap.ptq.metric_name import MetricName
from modcap.ptq.metrics import chosen_metric
from modcap.ptq.user_metric import with_code
from modcap.recipe import Recipe

__all__ = ["quantize"]

Told = Callable[[Job, int, int, float], None]


@torch.inference_mode(False)
@torch.enable_grad()
def quantize(
    model: nn.Module | torch.export.ExportedProgram | Network,
    images: Tensor | Batches,
    recipe: Recipe | None = None,
    progress: Told | bool | None = True,
    preprocess: Preprocess | str = "",
    classes: Sequence[str] = (),
    metric: str = "",
) -> Quantized:
    """Quantizes ``model`` by ``recipe``, calibrated on ``images``; labels are not needed.

    The caller's model is not changed, nor how many threads torch has. The same jobs run as on a
    cluster, one after another.

    Args:
        model: any network that torch.fx or torch.export captures, in float32: one image tensor in,
            one or several tensors out.
        images: (N, C, H, W), preprocessed as for the model; all N are used, in float32. Or batches
            of such, as a DataLoader gives them, with or without labels: the first
            ``recipe.calibration`` images of these.
        recipe: default ``Recipe.preset("quick")``.
        progress: a bar on the terminal, or not; or told (job, step, steps, loss) while a job
            optimises.
        preprocess: what was done to ``images``, as ``--preprocess`` takes it; the artifact, and
            what is exported of it, says so.
        classes: names of the logits, in their order; likewise.
        metric: what is measured on ``images`` beside full precision: agreement, error, or
            ``package.module:function`` (:mod:`modcap.ptq.user_metric`); by default the one of the
            first two that fits what the model returns.

    Raises:
        InputError: the model cannot be captured or holds NaN, or recipe and images do not fit.

    Example:
        >>> recipe = Recipe.preset("quick", w_bits=4, a_bits=4)
        >>> logits = quantize(model, images, recipe).network(images)  # doctest: +SKIP
    """
    recipe = (recipe or Recipe.preset("quick")).on(torch.cuda.is_available())
    images = _checked(images_of(images, recipe.calibration), recipe)
    network = model if isinstance(model, Network) else build(model, images[:2])
    if images.shape[1:] != network.input_shape:
        raise InputError(
            f"images are of shape {tuple(images.shape)}, and the network takes (N, "
            f"{', '.join(map(str, network.input_shape))})"
        )
    channels = images.shape[1]
    calibration = ImageSet(images, None, (0.0,) * channels, (1.0,) * channels)
    known = Known(preprocess=_written(preprocess), classes=tuple(classes))
    measure = _metric(metric, network, calibration)
    refuse_impossible_bounds(network, recipe)
    digest = calibration.digest
    cell = Cell(network, digest, digest, recipe, known=known, metric=measure)
    bench = WorkerCache.holding({network.digest: network, digest: calibration})
    results = _run_all(cell, bench, progress)
    name = "network" if isinstance(model, Network) else type(model).__name__
    return _quantized(network, plan([cell], results.get).cells[0], results, len(images), name)


def _checked(images: Tensor, recipe: Recipe) -> Tensor:
    if recipe.optimises and len(images) < recipe.optimiser.batch_size:
        raise InputError(
            f"{len(images)} calibration images are fewer than batch_size "
            f"{recipe.optimiser.batch_size}: give more images, or a smaller batch_size"
        )
    if not images.isfinite().all():
        raise InputError("the calibration images hold NaN or infinity: take those out")
    return images.detach().clone() if images.is_inference() else images.detach()


def _written(preprocess: Preprocess | str) -> str:
    """As artifacts say it; checked."""
    parsed = Preprocess.parse(preprocess) if isinstance(preprocess, str) and preprocess else None
    return str(parsed or preprocess)


def _metric(asked: str, network: Network, images: ImageSet) -> MetricName:
    """The metric, if it fits; calibration has no labels to measure by."""
    name = with_code(parse(MetricName, {"name": asked}, "metric"))
    if name.name == TOP1:
        raise InputError(
            "metric top1 needs labels, and calibration has none: take agreement, or measure the "
            "network that is returned, by modcap.ptq.metrics.top1"
        )
    with torch.no_grad():
        chosen_metric(name, network.outputs, network(images.normalized(0, 1)).shape, images)
    return name


def _run_all(cell: Cell, bench: WorkerCache, progress: Told | bool | None) -> dict[str, Result]:
    """Runs the plan of ``cell``, planned again whenever a selection opens more of it."""
    results: dict[str, Result] = {}
    threads = torch.get_num_threads()
    try:
        with ProgressBar(progress is True) as bar:
            told = progress if callable(progress) else bar.step
            while todo := _todo(cell, results, bar):
                for job in todo:
                    bar.begins(job)
                    needs = [results[key] for key in job.needs]
                    results[job.key] = run_job(job, bench, needs, _bound(told, job))
                    bar.ended()
    finally:
        torch.set_num_threads(threads)
    return results


def _todo(cell: Cell, results: dict[str, Result], bar: ProgressBar) -> list[Job]:
    jobs = plan([cell], results.get).jobs
    todo = [job for job in jobs if job.key not in results]
    bar.planned(len(jobs), len(jobs) - len(todo))
    return todo


def _bound(progress: Told, job: Job) -> Callable[[int, int, float], None] | None:
    if not job.work.steps:
        return None
    return lambda step, steps, loss: progress(job, step, steps, loss)


def _quantized(
    network: Network, cell: CellPlan, results: dict[str, Result], images: int, name: str
) -> Quantized:
    artifact = results[cell.assemble].tensors["artifact"].numpy().tobytes()
    evaluated: dict[str, Any] = results[cell.evaluate].meta
    scale = Scale.of(evaluated)
    return Quantized(
        network=unpack_network(artifact),
        artifact=artifact,
        modules=network.partition.names,
        groups=cell.groups,
        losses=tuple(evaluated["losses"]),
        oscillation=evaluated["oscillation"],
        results=results,
        recipe=cell.cell.recipe,
        images=images,
        scale=scale,
        value=scale.value(evaluated),
        full=scale.value(results[cell.evaluate_full].meta),
        float_bytes=network.float_bytes,
        cell=cell,
        name=name,
    )
