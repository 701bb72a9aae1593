"""Reconstruct jobs: one for each group."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from modcap.core.named import sparse
from modcap.core.serialization import Result
from modcap.graph.forward import run_batched
from modcap.jobs.cost_model import ModuleTimes, reconstruction_memory
from modcap.jobs.job import Arithmetic, Cell, Job, Progress, Room, Work
from modcap.jobs.kinds.activations import (
    full_precision,
    quantized_modules,
    states_of,
    tensors_of_modules,
)
from modcap.jobs.outline import outline_of
from modcap.jobs.pass_sizes import batch_size, images_per_step
from modcap.jobs.worker_cache import WorkerCache
from modcap.ptq.methods import AnyMethod
from modcap.ptq.optimise import Inputs
from modcap.ptq.reconstruct import calibrate, reconstruct
from modcap.ptq.selection import Span
from modcap.ptq.settings import Optimiser, RoundingStart, flat_fields
from modcap.quantization.bits import Bits
from modcap.quantization.insert import insert_quantizers
from modcap.quantization.scheme import Scheme
from modcap.recipe import Budget

__all__ = ["Reconstruct", "reconstruct_job"]


class Reconstruct(Arithmetic, Work):
    """Reconstructs the modules ``start`` to ``stop`` jointly.

    Attributes:
        bits: of each weight layer of these modules.
        p: exponent of the search for scales.
        optimiser: None where the method does not learn.
        seed: of batches and drops.
        prefix: the first of the modules before it that it sees quantized.
        prefix_bits: of these.
        scheme: what is quantized, and on which grids.
        rounding_start: which integers the group has before any are learned.
    """

    kind: ClassVar[str] = "reconstruct"
    counts_activations: ClassVar[bool] = True

    start: int
    stop: int
    bits: tuple[tuple[Bits, ...], ...]
    method: AnyMethod
    p: float
    optimiser: Optimiser | None = sparse(None)
    seed: int | None = sparse(None)
    prefix: int | None = sparse(None)
    prefix_bits: tuple[tuple[Bits, ...], ...] = sparse(())
    scheme: Scheme = sparse(Scheme())
    rounding_start: RoundingStart = sparse(RoundingStart.NEAREST)

    def run(
        self, job: Job, cache: WorkerCache, needs: Sequence[Result], progress: Progress | None
    ) -> Result:
        floats = cache.network(job.inputs["network"], self.device).partition.modules
        full = full_precision(job, cache, self.start)
        quantized = self._quantized_input(job, cache, needs)
        inputs = Inputs(quantized, full, full_precision(job, cache, self.stop))
        group = [
            insert_quantizers(floats[index], bits, self.scheme, index == len(floats) - 1)
            for index, bits in enumerate(self.bits, self.start)
        ]
        calibrate(group, full, self.p, job.passes)
        settings = self.optimiser or Optimiser(iterations=0)
        outcome = reconstruct(
            group,
            inputs,
            self.method,
            settings,
            self.group_seed,
            progress,
            job.passes,
            self.rounding_start,
        )
        place = self._place(job, (*job.needs, job.key))
        cache.activations.put(place, outcome.output, job.room.activation_bytes)
        meta = {"start": self.start, "stop": self.stop, "error": outcome.error}
        return Result(tensors_of_modules(group, self.start) | {"curve": outcome.curve}, meta)

    def _quantized_input(self, job: Job, cache: WorkerCache, needs: Sequence[Result]) -> Tensor:
        """The activations (N, ...) in front of the group, behind the quantized part of what lies
        before it."""
        if self.prefix is None:
            return full_precision(job, cache, self.start)
        at, x = self.prefix, None
        for count in range(len(needs), 0, -1):
            x = cache.activations.get(self._place(job, job.needs[:count]))
            if x is not None:
                at = needs[count - 1].meta["stop"]
                break
        if x is None:
            x = full_precision(job, cache, at)
        floats = cache.network(job.inputs["network"], self.device).partition.modules
        rest = self.prefix_bits[at - self.prefix :]
        modules = quantized_modules(floats, rest, states_of(needs), at, self.scheme)
        x = run_batched(modules, x, job.passes)
        cache.activations.put(self._place(job, job.needs), x, job.room.activation_bytes)
        return x

    @property
    def first(self) -> int:
        """The first module that it sees quantized, its own included."""
        return self.start if self.prefix is None else self.prefix

    def _place(self, job: Job, keys: tuple[str, ...]) -> tuple[Any, ...]:
        """Names the activations behind the results ``keys``, which see full precision in front;
        other numbers of threads give other bits."""
        images = job.inputs["calibration"]
        place = self.device, self.threads, job.inputs["network"]
        return *place, images, self.first, keys

    @property
    def group_seed(self) -> int:
        """One seed per group and prefix, so that no group's draws depend on which ran before."""
        text = f"{self.seed or 0}/{self.start}/{self.stop}/{self.first}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")

    @property
    def steps(self) -> int:
        return 0 if self.optimiser is None else self.optimiser.iterations

    def seconds(self, times: ModuleTimes) -> float:
        span = slice(self.start, self.stop)
        prefix = sum(times.forward[: self.stop]) * times.images * 2
        search = 2 if self.rounding_start is RoundingStart.LAYER_WISE else 1
        return search * sum(times.search[span]) + self.steps * sum(times.step[span]) + prefix

    def key_fields(self) -> dict[str, Any]:
        fields = super().key_fields() | {"method": self.method.name}
        if self.optimiser is not None:
            fields["optimiser"] = flat_fields(self.optimiser, self.method)
        return fields


def reconstruct_job(cell: Cell, span: Span, first: int, needs: tuple[str, ...]) -> Job:
    """``needs`` hold the modules from ``first`` to the group, which it sees quantized."""
    recipe = cell.recipe
    learns: dict[str, Any] = {}
    batch = 0
    if recipe.method.learns:
        steps, batch = recipe.optimiser.iterations, batch_size(cell.network, span, recipe)
        if recipe.iterations_per is Budget.MODULE:
            steps *= span.stop - span.start
        rounding = recipe.optimiser.rounding.for_network(outline_of(cell.network).depthwise)
        changed = {"iterations": steps, "batch_size": batch, "rounding": rounding}
        optimiser = recipe.optimiser.model_copy(update=changed)
        at_once = images_per_step(cell.network, span, batch)
        learns = {"optimiser": optimiser, "seed": recipe.seed, "step_images": at_once}
    if first < span.start:
        learns |= {"prefix": first, "prefix_bits": cell.bits[first : span.start]}
    work = Reconstruct(
        start=span.start,
        stop=span.stop,
        bits=tuple(map(tuple, cell.bits[span.start : span.stop])),
        method=recipe.method,
        p=recipe.scale_exponent,
        scheme=recipe.scheme,
        rounding_start=recipe.rounding_start,
        **learns,
        **Arithmetic.fields_of(cell),
    )
    bound = recipe.activation_bytes
    layer_wise = recipe.rounding_start is RoundingStart.LAYER_WISE
    memory = reconstruction_memory(cell.network, span, recipe.calibration, batch, bound, layer_wise)
    label = f"{recipe.method.name} {recipe.bits_label} {_title(cell.modules, span)}"
    return Job(work, cell.inputs("calibration"), needs, label, Room.of(recipe, memory))


def _title(names: Sequence[str], span: Span) -> str:
    first, last, count = names[span.start], names[span.stop - 1], span.stop - span.start
    return {1: first, 2: f"{first}+{last}"}.get(count, f"{first}…{last}")
