"""Jobs over the whole quantized network and the calibration images: correction, the choice of k,
tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from modcap.core.errors import ModcapError
from modcap.core.named import Frozen, sparse
from modcap.core.serialization import Result
from modcap.graph.forward import run_batched
from modcap.jobs.cost_model import (
    ModuleTimes,
    correction_memory,
    reconstruction_memory,
)
from modcap.jobs.job import Arithmetic, Cell, Job, Progress, Room, Work
from modcap.jobs.kinds.activations import (
    full_precision,
    quantized_modules,
    states_of,
    tensors_of_modules,
)
from modcap.jobs.kinds.select import selected
from modcap.jobs.pass_sizes import correction_images, images_per_step
from modcap.jobs.worker_cache import WorkerCache
from modcap.ptq import channel_correction, finetune
from modcap.ptq.relative_error import relative_error
from modcap.ptq.selection import Span
from modcap.ptq.settings import Precision
from modcap.quantization.bits import Bits
from modcap.quantization.scheme import Scheme

__all__ = [
    "TUNING_COST",
    "Choose",
    "Correct",
    "Tune",
    "choose_job",
    "correct_job",
    "trial_job",
    "tune_job",
]

TUNING_COST = 0.5
"""Of a step of tuning, relative to a step of every module alone; at most."""


class _OverWhole(Arithmetic, Work):
    bits: tuple[tuple[Bits, ...], ...]
    scheme: Scheme = sparse(Scheme())

    def quantized(self, floats: Sequence[Any], results: Sequence[Result]) -> list[nn.Module]:
        """The modules in the states that ``results`` say."""
        return quantized_modules(floats, self.bits, states_of(results), scheme=self.scheme)


class Correct(_OverWhole):
    """Corrects the mean and the scale of each channel (:mod:`modcap.ptq.channel_correction`)."""

    kind: ClassVar[str] = "correct"

    counts: tuple[int, ...] | None = sparse(None)
    """Images that each module is corrected on; None is all."""

    @torch.no_grad()
    def run(
        self, job: Job, cache: WorkerCache, needs: Sequence[Result], progress: Progress | None
    ) -> Result:
        floats = cache.network(job.inputs["network"], self.device).partition.modules
        modules = self.quantized(floats, needs)
        images = cache.images(job.inputs["calibration"])
        x = images.normalized(0, channel_correction.IMAGES).to(self.device)
        before, after = channel_correction.correct(floats, modules, x, self.counts, job.passes)
        return Result(tensors_of_modules(modules), {"error_before": before, "error": after})

    def seconds(self, times: ModuleTimes) -> float:
        return 3 * sum(times.forward) * channel_correction.IMAGES


class Candidate(Frozen):
    """Groups as (start, stop), and how many of the needed results say what became of them."""

    groups: tuple[tuple[int, int], ...]
    states: int


class Choose(_OverWhole):
    """Takes the k with the least final error on the calibration images; of equals the first.

    It needs the selection, then the states of each candidate, one after another.
    """

    kind: ClassVar[str] = "choose"

    candidates: tuple[Candidate, ...]

    @torch.no_grad()
    def run(
        self, job: Job, cache: WorkerCache, needs: Sequence[Result], progress: Progress | None
    ) -> Result:
        select, *states = needs
        errors = self._errors(job, cache, states)
        finite = [error for error in errors if math.isfinite(error)]
        if not finite:
            raise ModcapError("every k that was compared gives logits that are no numbers")
        best = errors.index(min(finite))
        modules = sum(b - a for a, b in self.candidates[0].groups)
        stops = {stop for _, stop in self.candidates[best].groups}
        mask = [boundary not in stops for boundary in range(1, modules)]
        compared = [
            {
                "k": modules - len(candidate.groups),
                "error": error if math.isfinite(error) else None,
            }
            for candidate, error in zip(self.candidates, errors, strict=True)
        ]
        return Result(meta=select.meta | selected(mask) | {"chosen": best, "compared": compared})

    def _errors(self, job: Job, cache: WorkerCache, results: Sequence[Result]) -> list[float]:
        floats = cache.network(job.inputs["network"], self.device).partition.modules
        errors: list[float] = []
        for candidate in self.candidates:
            states, results = results[: candidate.states], results[candidate.states :]
            if states[-1].meta["kind"] == Tune.kind:  # of all: that knows it
                errors.append(states[-1].meta["error"])
                continue
            modules = self.quantized(floats, states)
            output = run_batched(modules, full_precision(job, cache, 0), job.passes)
            target = full_precision(job, cache, len(floats))
            errors.append(relative_error(output, target, self.pass_images))
        return errors

    def seconds(self, times: ModuleTimes) -> float:
        return sum(times.forward) * times.images * (1 + 2 * len(self.candidates))


class Tune(_OverWhole):
    """Trains the whole network on its logits (:mod:`modcap.ptq.finetune`)."""

    kind: ClassVar[str] = "tune"
    counts_activations: ClassVar[bool] = True

    iterations: int
    rate: float
    rounding_rate: float
    batch_size: int
    seed: int
    precision: Precision

    def run(
        self, job: Job, cache: WorkerCache, needs: Sequence[Result], progress: Progress | None
    ) -> Result:
        floats = cache.network(job.inputs["network"], self.device).partition.modules
        modules = self.quantized(floats, needs)
        x, target = full_precision(job, cache, 0), full_precision(job, cache, len(floats))
        curve, before, after = finetune.tune(
            floats,
            modules,
            x,
            target,
            self.iterations,
            self.rate,
            self.rounding_rate,
            self.batch_size,
            self.seed,
            self.precision,
            progress,
            job.passes,
        )
        meta = {"error_before": before, "error": after}
        return Result(tensors_of_modules(modules) | {"curve": curve}, meta)

    @property
    def steps(self) -> int:
        return self.iterations

    def seconds(self, times: ModuleTimes) -> float:
        return TUNING_COST * self.steps * sum(times.step) + 4 * sum(times.forward) * times.images

    def key_fields(self) -> dict[str, Any]:
        fields = super().key_fields()
        return fields | {"steps": fields.pop("iterations")}


def _common(cell: Cell) -> dict[str, Any]:
    fields = {"bits": tuple(map(tuple, cell.bits)), "scheme": cell.recipe.scheme}
    return fields | Arithmetic.fields_of(cell)


def _job(cell: Cell, work: Work, needs: tuple[str, ...], label: str, memory: int) -> Job:
    return Job(work, cell.inputs("calibration"), needs, label, Room.of(cell.recipe, memory))


def correct_job(cell: Cell, needs: tuple[str, ...]) -> Job:
    """``needs`` hold the state of every module."""
    counts = correction_images(cell.network, channel_correction.IMAGES)
    work = Correct(counts=counts, **_common(cell))
    memory = correction_memory(cell.network, counts, cell.recipe.activation_bytes)
    return _job(cell, work, needs, f"correct {cell.name}", memory)


def choose_job(
    cell: Cell, select: str, groupings: Sequence[tuple[Sequence[Span], tuple[str, ...]]]
) -> Job:
    """``groupings``: groups, and the jobs that say what became of every module."""
    candidates = tuple(
        Candidate(groups=tuple((a, b) for a, b in groups), states=len(states))
        for groups, states in groupings
    )
    needs = (select, *(key for _, states in groupings for key in states))
    work = Choose(candidates=candidates, **_common(cell))
    modules, recipe = Span(0, len(cell.modules)), cell.recipe
    memory = reconstruction_memory(
        cell.network, modules, recipe.calibration, 0, recipe.activation_bytes
    )
    return _job(cell, work, needs, f"choose {cell.name}", memory)


def tune_job(cell: Cell, needs: tuple[str, ...]) -> Job:
    """``needs`` hold the state of every module."""
    return _tuning(cell, needs, cell.recipe.tuning_steps, f"tune {cell.name}")


def trial_job(cell: Cell, needs: tuple[str, ...], k: int) -> Job:
    """A short tuning, by which ``k`` is compared with others."""
    return _tuning(cell, needs, cell.recipe.trial_steps, f"try k={k} {cell.name}")


def _tuning(cell: Cell, needs: tuple[str, ...], steps: int, label: str) -> Job:
    recipe = cell.recipe
    batch, modules = recipe.optimiser.batch_size, Span(0, len(cell.modules))
    work = Tune(
        iterations=steps,
        rate=recipe.tuning_rate,
        rounding_rate=recipe.tuning_rounding_rate,
        batch_size=batch,
        seed=recipe.seed,
        precision=recipe.optimiser.precision,
        step_images=images_per_step(cell.network, modules, batch),
        **_common(cell),
    )
    bound = recipe.activation_bytes
    memory = reconstruction_memory(cell.network, modules, recipe.calibration, batch, bound)
    return _job(cell, work, needs, label, memory)
