"""Capacity jobs: one for each module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from modcap.core.serialization import Result
from modcap.graph.forward import run_batched
from modcap.jobs.cost_model import ModuleTimes, reconstruction_memory
from modcap.jobs.job import Arithmetic, Cell, Job, Progress, Room, Work
from modcap.jobs.worker_cache import WorkerCache
from modcap.ptq import capacity
from modcap.ptq.reconstruct import calibrate, freeze
from modcap.ptq.selection import Span
from modcap.quantization.insert import insert_quantizers
from modcap.quantization.layers import Bits
from modcap.recipe import CapacityKind

__all__ = ["DataDependentCapacity", "DataFreeCapacity", "capacity_jobs"]


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
    """Measures the error of a module, behind those before it, all rounded to nearest."""

    kind: ClassVar[str] = "capacity"

    measure: Literal["data-dependent"] = "data-dependent"
    module: int
    bits: tuple[tuple[Bits, ...], ...]
    images: int
    p: float

    @torch.no_grad()
    def run(
        self, job: Job, cache: WorkerCache, needs: Sequence[Result], progress: Progress | None
    ) -> Result:
        modules = cache.network(job.inputs["network"], self.device).partition.modules
        images = cache.images(job.inputs["calibration"])
        x = images.normalized(0, self.images).to(self.device)
        x_quantized = x
        for module, bits in zip(modules, self.bits, strict=False):
            quantized = insert_quantizers(module, bits)
            calibrate([quantized], x, self.p)
            freeze([quantized])
            x, x_quantized = run_batched([module], x), run_batched([quantized], x_quantized)
        return Result(meta={"capacity": capacity.data_dependent(x_quantized, x)})

    def seconds(self, times: ModuleTimes) -> float:
        stop = self.module + 1
        return sum(times.search[:stop]) + 3 * sum(times.forward[:stop]) * self.images


def capacity_jobs(cell: Cell) -> list[Job]:
    """Those of ``cell``; none where nothing can be joined."""
    recipe = cell.recipe
    if recipe.capacity is CapacityKind.NONE or not recipe.method.needs_capacity:
        return []
    make = _data_free if recipe.capacity is CapacityKind.DATA_FREE else _data_dependent
    return [make(cell, index) for index in range(len(cell.modules))]


def _data_free(cell: Cell, index: int) -> Job:
    alpha = cell.recipe.stride_coefficient
    work = DataFreeCapacity(module=index, bits=tuple(cell.bits[index]), alpha=alpha)
    return Job(work, cell.inputs(), label=f"capacity {cell.modules[index]}")


def _data_dependent(cell: Cell, index: int) -> Job:
    recipe = cell.recipe
    work = DataDependentCapacity(
        module=index,
        bits=tuple(map(tuple, cell.bits[: index + 1])),
        images=recipe.capacity_images,
        p=recipe.scale_exponent,
        **Arithmetic.fields_of(recipe),
    )
    images = max(recipe.capacity_images, recipe.optimiser.batch_size)
    memory = reconstruction_memory(cell.network, Span(index, index + 1), images, 0)
    label = f"capacity {cell.modules[index]}"
    return Job(work, cell.inputs("calibration"), label=label, room=Room.of(recipe, memory))
