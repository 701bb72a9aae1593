"""The capacities of a checkpoint's modules and the boundaries they select, in this process."""

from __future__ import annotations

from typing import Any

import torch

from modcap.core.errors import InputError
from modcap.core.serialization import Result
from modcap.flows.requests.asked import Request
from modcap.flows.requests.without_images import prepare_to_look
from modcap.jobs.plan import plan
from modcap.jobs.run_job import run_job
from modcap.jobs.worker_cache import WorkerCache
from modcap.recipe import CapacityKind

__all__ = ["measure_capacity"]


def measure_capacity(request: Request) -> dict[str, Any]:
    """Runs the capacity and select jobs of ``request``; no server is needed."""
    if request.recipe.capacity is CapacityKind.NONE:
        raise InputError(
            "--capacity none measures nothing, so there is nothing to show: give data-free or "
            "data-dependent"
        )
    if not request.recipe.method.needs_capacity:
        raise InputError(
            f"--method {request.recipe.method.name} joins nothing, so no capacity is measured: "
            "give another method"
        )
    if request.recipe.chooses_bits:
        raise InputError(
            "--w-bits auto: capacity counts bits, and which these are a run chooses: give --w-bits "
            "2 to 8"
        )
    request = request.on(torch.cuda.is_available())
    prepared = prepare_to_look(request)
    cell = prepared.cell
    bench = WorkerCache.holding(
        {cell.network.digest: cell.network, cell.calibration: prepared.calibration}
    )
    planned = plan([cell], lambda _: None)
    results: dict[str, Result] = {}
    for job in planned.jobs:
        if job.kind in ("capacity", "select"):
            results[job.key] = run_job(job, bench, [results[key] for key in job.needs])
    selected = results[planned.cells[0].select].meta
    names = cell.modules
    return {
        "checkpoint": request.checkpoint,
        "recipe": request.recipe.model_dump(mode="json"),
        "modules": list(names),
        "capacities": selected["capacities"],
        "differentials": selected["differentials"],
        "homogeneous": selected["allowed"],
        "selected": selected["selected"],
        "k": selected["k"],
        "groups": [list(names[start:stop]) for start, stop in selected["groups"]],
    }
