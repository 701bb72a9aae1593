"""Sensitivity jobs: what the weights of one layer cost at each width, alone, a job for each layer;
and one of the whole network, at each width.

They know no bound, so all cells of a sweep that choose bits share them; and those of layers know
nothing of activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from modcap.core.named import sparse
from modcap.core.serialization import Result
from modcap.jobs.cost_model import ModuleTimes, correction_memory, reconstruction_memory
from modcap.jobs.job import Arithmetic, Cell, Job, Progress, Room, Work
from modcap.jobs.kinds.activations import full_precision
from modcap.jobs.pass_sizes import correction_images
from modcap.jobs.worker_cache import WorkerCache
from modcap.ptq import channel_correction
from modcap.ptq.selection import Span
from modcap.ptq.sensitivity import Cost, cost_of_network, layer_errors
from modcap.quantization.bits import FLOAT, WIDTHS, Bits
from modcap.quantization.scheme import Activations, Scheme
from modcap.recipe import Allocation

__all__ = ["LayerSensitivity", "NetworkSensitivity", "costs_of", "errors_of", "sensitivity_jobs"]


class LayerSensitivity(Arithmetic, Work):
    """Rounds the weights of one layer, at each width; only what lies behind it is run again.

    Attributes:
        module: the one with the layer.
        layer: its number there.
        layers: how many that has.
        widths: to be tried.
        images: of calibration, at most.
        p: exponent of the search for scales.
        scheme: on which grids.
        corrected: images that its channels are corrected on, at most.
    """

    kind: ClassVar[str] = "sensitivity"
    counts_activations: ClassVar[bool] = True

    of: Literal["layer"] = "layer"
    module: int
    layer: int
    layers: int
    widths: tuple[int, ...]
    images: int
    p: float
    scheme: Scheme = sparse(Scheme())
    corrected: int = sparse(channel_correction.IMAGES)

    def run(
        self, job: Job, cache: WorkerCache, needs: Sequence[Result], progress: Progress | None
    ) -> Result:
        modules = cache.network(job.inputs["network"], self.device).partition.modules
        target = full_precision(job, cache, len(modules), self.images)
        x = full_precision(job, cache, self.module, self.images)
        trials = [[FLOAT] * self.layers for _ in self.widths]
        for trial, width in zip(trials, self.widths, strict=True):
            trial[self.layer] = Bits(width, 0)
        behind = modules[self.module :]
        errors = layer_errors(
            behind, trials, x, target, self.p, self.scheme, job.passes, self.corrected
        )
        return Result(meta={"errors": errors})

    def seconds(self, times: ModuleTimes) -> float:
        behind = sum(times.forward[self.module :]) * self.images
        search = times.search[self.module] / self.layers
        return sum(times.forward) * self.images + len(self.widths) * (search + behind)


class NetworkSensitivity(Arithmetic, Work):
    """Rounds the whole network, weights and activations, at each width.

    Attributes:
        trials: bits of each weight layer of each module.
        p: exponent of the search for scales.
        scheme: what is quantized, and on which grids.
        corrected: images that channels of each module are corrected on; None is all.
    """

    kind: ClassVar[str] = "sensitivity"
    counts_activations: ClassVar[bool] = True

    of: Literal["network"] = "network"
    trials: tuple[tuple[tuple[Bits, ...], ...], ...]
    p: float
    scheme: Scheme = sparse(Scheme())
    corrected: tuple[int, ...] | None = sparse(None)

    @torch.no_grad()
    def run(
        self, job: Job, cache: WorkerCache, needs: Sequence[Result], progress: Progress | None
    ) -> Result:
        network = cache.network(job.inputs["network"], self.device)
        modules = network.partition.modules
        x, target = full_precision(job, cache, 0), full_precision(job, cache, len(modules))
        costs = [
            cost_of_network(
                modules, bits, x, target, self.p, self.scheme, job.passes, self.corrected
            )
            for bits in self.trials
        ]
        changed = [None if network.outputs else cost.disagreement for cost in costs]
        return Result(meta={"errors": [cost.error for cost in costs], "disagreements": changed})

    def seconds(self, times: ModuleTimes) -> float:
        passes = 2 * sum(times.forward) * times.images
        return len(self.trials) * (sum(times.search) + passes)


def errors_of(result: Result) -> list[float]:
    """Of one layer at each width."""
    return [float(error) for error in result.meta["errors"]]


def costs_of(result: Result) -> list[Cost]:
    """Of the whole network at each width."""
    pairs = zip(result.meta["errors"], result.meta["disagreements"], strict=True)
    return [Cost(error, changed) for error, changed in pairs]


def sensitivity_jobs(cell: Cell) -> list[Job]:
    """Those of ``cell``: of its layers in their order, but for those that stay float, and last that
    of the network; none where the choice goes by something else."""
    if cell.recipe.allocation is not Allocation.SENSITIVITY:
        return []
    candidates = cell.recipe.bit_policy.candidates(cell.network, WIDTHS)
    jobs = [
        _of_layer(cell, module, layer, [own.weight for own in bits])
        for module, layers in enumerate(candidates)
        for layer, bits in enumerate(layers)
        if bits != (FLOAT,)
    ]
    return [*jobs, _of_network(cell, candidates)]


def _of_layer(cell: Cell, module: int, layer: int, widths: Sequence[int]) -> Job:
    recipe = cell.recipe
    paths, counts = cell.network.paths[module], _corrected(cell)
    work = LayerSensitivity(
        module=module,
        layer=layer,
        layers=len(paths),
        widths=tuple(widths),
        images=recipe.sensitivity_images,
        p=recipe.scale_exponent,
        scheme=recipe.scheme.model_copy(update={"activations": Activations.INPUTS}),
        corrected=channel_correction.IMAGES if counts is None else counts[module],
        **Arithmetic.fields_of(cell),
    )
    span = Span(module, module + 1)
    return _job(cell, work, span, recipe.sensitivity_images, f"sensitivity {paths[layer]}")


def _of_network(cell: Cell, candidates: Sequence[Sequence[Sequence[Bits]]]) -> Job:
    recipe = cell.recipe
    trials = tuple(
        tuple(tuple(bits[min(place, len(bits) - 1)] for bits in layers) for layers in candidates)
        for place in range(len(WIDTHS))
    )
    work = NetworkSensitivity(
        trials=trials,
        p=recipe.scale_exponent,
        scheme=recipe.scheme,
        corrected=_corrected(cell),
        **Arithmetic.fields_of(cell),
    )
    span = Span(0, len(cell.modules))
    return _job(cell, work, span, recipe.calibration, f"sensitivity {cell.name}")


def _corrected(cell: Cell) -> tuple[int, ...] | None:
    return correction_images(cell.network, channel_correction.IMAGES)


def _job(cell: Cell, work: Work, span: Span, images: int, label: str) -> Job:
    bound = cell.recipe.activation_bytes
    memory = max(
        reconstruction_memory(cell.network, span, images, 0, bound),
        correction_memory(cell.network, _corrected(cell), bound),
    )
    inputs = cell.inputs("calibration")
    return Job(work, inputs, label=label, room=Room.of(cell.recipe, memory))
