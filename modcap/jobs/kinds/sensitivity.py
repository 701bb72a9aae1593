"""Sensitivity jobs: what one layer costs at each width, quantized alone; one for each layer.

They know no bound, so all cells of a sweep that choose bits share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from modcap.core.named import sparse
from modcap.core.serialization import Result
from modcap.jobs.cost_model import ModuleTimes, reconstruction_memory
from modcap.jobs.job import Arithmetic, Cell, Job, Progress, Room, Work
from modcap.jobs.kinds.activations import full_precision
from modcap.jobs.worker_cache import WorkerCache
from modcap.ptq.selection import Span
from modcap.ptq.sensitivity import Sensitivity, sensitivities
from modcap.quantization.bits import FLOAT, WIDTHS, Bits
from modcap.quantization.scheme import Activations, Scheme
from modcap.recipe import Allocation

__all__ = ["MeasureSensitivity", "sensitivities_of", "sensitivity_jobs"]


class MeasureSensitivity(Arithmetic, Work):
    """Quantizes one layer alone, at each width; only what lies behind it is run again.

    Attributes:
        module: the one with the layer.
        layer: its number there.
        widths: bits of its weights, to be tried.
        activation: bits of its input; 0 stays float.
        images: of calibration, at most.
        p: exponent of the search for scales.
        scheme: on which grids.
    """

    kind: ClassVar[str] = "sensitivity"
    counts_activations: ClassVar[bool] = True

    module: int
    layer: int
    widths: tuple[int, ...]
    activation: int
    images: int
    p: float
    scheme: Scheme = sparse(Scheme())

    def run(
        self, job: Job, cache: WorkerCache, needs: Sequence[Result], progress: Progress | None
    ) -> Result:
        network = cache.network(job.inputs["network"], self.device)
        modules = network.partition.modules
        target = full_precision(job, cache, len(modules), self.images)
        x = full_precision(job, cache, self.module, self.images)
        found = sensitivities(
            modules[self.module :],
            self.layer,
            self.widths,
            self.activation,
            x,
            target,
            self.p,
            self.scheme,
            job.passes,
        )
        return Result(
            meta={
                "errors": [each.error for each in found],
                "disagreements": [None if network.outputs else e.disagreement for e in found],
            }
        )

    def seconds(self, times: ModuleTimes) -> float:
        behind = sum(times.forward[self.module :]) * self.images
        return sum(times.forward) * self.images + len(self.widths) * (
            times.search[self.module] + behind
        )


def sensitivities_of(result: Result) -> list[Sensitivity]:
    """At each width, from the result of a job."""
    pairs = zip(result.meta["errors"], result.meta["disagreements"], strict=True)
    return [Sensitivity(error, changed) for error, changed in pairs]


def sensitivity_jobs(cell: Cell) -> list[Job]:
    """Those of ``cell``, in the order of its layers; none of layers that stay float, and none where
    the choice goes by something else."""
    if cell.recipe.allocation is not Allocation.SENSITIVITY:
        return []
    candidates = cell.recipe.bit_policy.candidates(cell.network, WIDTHS)
    return [
        _job(cell, module, layer, bits)
        for module, layers in enumerate(candidates)
        for layer, bits in enumerate(layers)
        if bits != (FLOAT,)
    ]


def _job(cell: Cell, module: int, layer: int, bits: tuple[Bits, ...]) -> Job:
    recipe = cell.recipe
    inputs_alone = recipe.scheme.model_copy(update={"activations": Activations.INPUTS})
    work = MeasureSensitivity(
        module=module,
        layer=layer,
        widths=tuple(own.weight for own in bits),
        activation=bits[0].activation,
        images=recipe.sensitivity_images,
        p=recipe.scale_exponent,
        scheme=inputs_alone,
        **Arithmetic.fields_of(cell),
    )
    span, images = Span(module, module + 1), recipe.sensitivity_images
    memory = reconstruction_memory(cell.network, span, images, 0, recipe.activation_bytes)
    label = f"sensitivity {cell.network.paths[module][layer]}"
    return Job(work, cell.inputs("calibration"), label=label, room=Room.of(recipe, memory))
