"""Capacity jobs: one for each module where parameters are counted, one for all where their errors
are measured, since each is measured behind those before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from modcap.core.named import sparse
from modcap.core.serialization import Result
from modcap.graph.forward import BATCH, run_batched
from modcap.jobs.cost_model import ModuleTimes, capacity_memory
from modcap.jobs.job import Arithmetic, Cell, Job, Progress, Room, Work
from modcap.jobs.worker_cache import WorkerCache
from modcap.ptq import capacity
from modcap.ptq.reconstruct import calibrate, freeze
from modcap.quantization.bits import Bits
from modcap.quantization.insert import insert_quantizers
from modcap.quantization.scheme import Scheme
from modcap.recipe import CapacityKind

__all__ = ["DataDependentCapacity", "DataFreeCapacity", "capacities_of", "capacity_jobs"]


class DataFreeCapacity(Work):
    """Counts the bits of the parameters of a module (MRECG, eq. 8)."""

    kind: ClassVar[str] = "capacity"
    small: ClassVar[bool] = True

    measure: Literal["data-free"] = "data-free"
    module: int
    bits: tuple[Bits, ...]
    alpha: float

    def run(
        self, job: Job, cache: WorkerCache, needs: Sequence[Result], progress: Progress | None
    ) -> Result:
        module = cache.network(job.inputs["network"]).partition.modules[self.module]
        return Result(meta={"capacity": capacity.data_free(module, self.bits, self.alpha)})


class DataDependentCapacity(Arithmetic, Work):
    """Measures the error of every module, behind those before it, all rounded to nearest."""

    kind: ClassVar[str] = "capacity"

    measure: Literal["data-dependent"] = "data-dependent"
    bits: tuple[tuple[Bits, ...], ...]
    images: int
    p: float
    scheme: Scheme = sparse(Scheme())

    @torch.no_grad()
    def run(
        self, job: Job, cache: WorkerCache, needs: Sequence[Result], progress: Progress | None
    ) -> Result:
        modules = cache.network(job.inputs["network"], self.device).partition.modules
        images = cache.images(job.inputs["calibration"])
        x = images.normalized(0, self.images).to(self.device)
        x_quantized = x
        # all at once where they go through modules at once, as ever
        together = None if self.pass_images == BATCH else self.pass_images
        found = []
        for index, (module, bits) in enumerate(zip(modules, self.bits, strict=True)):
            last = index == len(modules) - 1
            quantized = insert_quantizers(module, bits, self.scheme, last)
            calibrate([quantized], x, self.p, job.passes)
            freeze([quantized])
            x = run_batched([module], x, job.passes)
            x_quantized = run_batched([quantized], x_quantized, job.passes)
            found.append(capacity.data_dependent(x_quantized, x, together))
        return Result(meta={"capacities": found})

    def seconds(self, times: ModuleTimes) -> float:
        return sum(times.search) + 3 * sum(times.forward) * self.images


def capacities_of(results: Sequence[Result]) -> list[float]:
    """Those of all modules, in order, from the results of their jobs."""
    return [
        float(value)
        for result in results
        for value in result.meta.get("capacities") or [result.meta["capacity"]]
    ]


def capacity_jobs(cell: Cell) -> list[Job]:
    """Those of ``cell``; none where nothing can be joined."""
    recipe = cell.recipe
    if recipe.capacity is CapacityKind.NONE or not recipe.method.needs_capacity:
        return []
    if recipe.capacity is CapacityKind.DATA_DEPENDENT:
        return [_data_dependent(cell)]
    return [_data_free(cell, index) for index in range(len(cell.modules))]


def _data_free(cell: Cell, index: int) -> Job:
    alpha = cell.recipe.stride_coefficient
    work = DataFreeCapacity(module=index, bits=tuple(cell.bits[index]), alpha=alpha)
    return Job(work, cell.inputs(), label=f"capacity {cell.modules[index]}")


def _data_dependent(cell: Cell) -> Job:
    recipe = cell.recipe
    work = DataDependentCapacity(
        bits=tuple(map(tuple, cell.bits)),
        images=recipe.capacity_images,
        p=recipe.scale_exponent,
        scheme=recipe.scheme,
        **Arithmetic.fields_of(cell),
    )
    memory = capacity_memory(cell.network, recipe.capacity_images, recipe.activation_bytes)
    room = Room.of(recipe, memory)
    return Job(work, cell.inputs("calibration"), label=f"capacity {cell.name}", room=room)
