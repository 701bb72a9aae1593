"""What a run or a sweep would do: its jobs, what is done already, time and cost on N workers."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from modcap.core.serialization import Result
from modcap.flows.execution.connect import find_s3
from modcap.flows.reports.chosen_bits import allocation_of, layer_bits
from modcap.flows.requests.request import Prepared
from modcap.flows.requests.sweep_grid import Sweep, prepare_sweep, sharing
from modcap.flows.requests.without_images import prepare_to_look
from modcap.graph.forward import BATCH, run_batched
from modcap.jobs.cost_model import ModuleTimes
from modcap.jobs.job import Job
from modcap.jobs.kinds import KINDS
from modcap.jobs.kinds.whole import Choose
from modcap.jobs.pass_sizes import batch_size, images_per_pass
from modcap.jobs.plan import CellPlan, Plan, plan
from modcap.jobs.run_job import run_job
from modcap.jobs.simulate import critical_path, simulate
from modcap.jobs.worker_cache import WorkerCache
from modcap.ptq.optimise import Inputs
from modcap.ptq.reconstruct import calibrate, reconstruct
from modcap.ptq.selection import Span
from modcap.quantization.insert import insert_quantizers
from modcap.recipe import Recipe

if TYPE_CHECKING:
    from modcap.tasks.storage.store import Store

__all__ = ["costs_of", "describe_plan", "open_plan"]

_PROBE_STEPS = 3
_PROBE_IMAGES = 4  # of a step, where images are large


def describe_plan(
    grid: Sweep, workers: int, price_per_hour: float | None, picture: Path | None = None
) -> dict[str, Any]:
    """Plans the grid without running it.

    Data-free capacities and the selections that follow from them are computed here, in
    milliseconds. Where a selection needs data and was not made yet, the plan stays open and counts
    what is known. Costs are those measured in the store, and for other jobs a probe of a few steps.

    Args:
        grid: a sweep; a single run is a sweep of one.
        workers: jobs at once, in the simulation.
        price_per_hour: of one worker.
        picture: where to write the graph, as PNG.
    """
    store = _store()
    prepared = prepare_sweep(grid.on(torch.cuda.is_available()), prepare_to_look)
    known: dict[str, Result] = {}
    made = open_plan(prepared, store, known)
    done = store.done(job.key for job in made.jobs) if store else set()
    todo = [job for job in made.jobs if job.key not in done]
    costs, measured = costs_of(made, prepared, store, done, known)
    longest, path = critical_path(todo, made.waits, costs)
    simulated = {n: simulate(todo, made.waits, costs, n) for n in sorted({1, workers})}
    at = simulated[workers]
    if picture is not None:
        from modcap.flows.reports import plots

        picture.write_bytes(plots.png(_draw(made, done)))
    kinds = Counter(job.kind for job in made.jobs)
    finished = Counter(job.kind for job in made.jobs if job.key in done)
    report: dict[str, Any] = {
        "cells": len(made.cells),
        "open": made.open,
        "jobs": {
            kind: {"planned": kinds[kind], "done": finished[kind]} for kind in KINDS if kinds[kind]
        },
        "planned": len(made.jobs),
        "done": len(done),
        "todo": len(todo),
        "reconstructions": sharing(made),
        "critical_path": {"seconds": round(longest, 1), "jobs": [job.label for job in path]},
        "work_seconds": round(sum(costs[job.key] for job in todo), 1),
        "costs": measured,
        "assumed": _assumed(prepared),
        "bits": [_bits(cell, known) for cell in made.cells if _of_several_bits(cell)],
        "workers": workers,
        "seconds": round(at.makespan, 1),
        "seconds_on_one": round(simulated[1].makespan, 1),
        "efficiency": round(at.efficiency, 4),
    }
    if price_per_hour is not None:
        report["cost"] = round(at.makespan / 3600 * workers * price_per_hour, 2)
    return report


def _of_several_bits(cell: CellPlan) -> bool:
    """Whether names say bits of layers, or a job chooses them."""
    recipe = cell.cell.recipe
    return recipe.chooses_bits or bool(recipe.bits or recipe.float)


def _bits(cell: CellPlan, known: Mapping[str, Result]) -> dict[str, Any]:
    """The bits of the layers of a cell, or None where they are not chosen yet."""
    chosen = cell.cell.chosen is not None
    open_ = cell.cell.recipe.chooses_bits and not chosen
    return {
        "name": cell.cell.name,
        "layer_bits": None if open_ else layer_bits(cell.cell),
        "allocation": allocation_of(known[cell.allocate]) if chosen else None,
    }


def _assumed(prepared: Sequence[Prepared]) -> list[str]:
    """What is taken for granted where no images were given, a line each."""
    shapes = {p.network.input_shape for p in prepared if p.request.data is None}
    return [
        f"no images given: planned for {' × '.join(map(str, shape))}, without evaluation"
        for shape in sorted(shapes)
    ]


def _store() -> Store | None:
    """The store, where one is configured or runs already; planning starts nothing."""
    find_s3()
    if not os.environ.get("MODCAP_BUCKET"):
        return None
    from modcap.tasks.storage.store import Store

    store = Store.from_environment()
    store.ensure_bucket()
    return store


def open_plan(prepared: Sequence[Prepared], store: Store | None, known: dict[str, Result]) -> Plan:
    """The plan as far as it can be seen; puts what was computed here into ``known``.

    Where several k are to be compared, it goes on with the first: what follows costs the same.
    """
    bench = WorkerCache.holding({p.cell.network.digest: p.cell.network for p in prepared})

    assumed: dict[str, Result] = {}

    def look(key: str) -> Result | None:
        if key not in known and store is not None:
            found = store.get(key)
            if found is not None:
                known[key] = found
        return known.get(key) or assumed.get(key)

    cells = [p.cell for p in prepared]
    while True:
        current = plan(cells, look)
        new = [job for job in current.jobs if job.work.small and job.key not in known]
        made = [job for job in new if _run_small(job, bench, look, known)]
        chooses = [
            job for job in current.jobs if isinstance(job.work, Choose) and not look(job.key)
        ]
        assumed |= {job.key: Result(meta={"chosen": 0}) for job in chooses}
        if not made and not chooses:
            return current


def _run_small(
    job: Job,
    bench: WorkerCache,
    look: Callable[[str], Result | None],
    known: dict[str, Result],
) -> bool:
    needs = [look(key) for key in job.needs]
    present = [result for result in needs if result is not None]
    if len(present) < len(needs):
        return False
    known[job.key] = run_job(job, bench, present)
    return True


def costs_of(
    made: Plan,
    prepared: Sequence[Prepared],
    store: Store | None,
    done: set[str],
    known: dict[str, Result],
) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds of every job, and from where they were taken."""
    costs: dict[str, float] = {}
    for job in made.jobs:
        meta = known[job.key].meta if job.key in known else None
        if meta is None and store and job.key in done:
            meta = store.meta(job.key)
        if meta is not None:
            costs[job.key] = float(meta["seconds"])
    measured = len(costs)
    probes: dict[str, ModuleTimes] = {}
    cells = {p.cell.network.digest: p for p in prepared}
    for job in made.jobs:
        if job.key not in costs:
            digest = job.inputs["network"]
            if digest not in probes:
                probes[digest] = _probe(cells[digest])
            costs[job.key] = job.work.seconds(probes[digest])
    return costs, {"measured": measured, "probed": len(costs) - measured}


def _probe(prepared: Prepared) -> ModuleTimes:
    """Times a few steps of every module of a network here, and a pass over a few images."""
    recipe: Recipe = prepared.request.recipe
    torch.set_num_threads(recipe.threads)
    batch = recipe.optimiser.batch_size
    if images_per_pass(prepared.network) < BATCH:  # large images: a few of them tell
        batch = min(batch, _PROBE_IMAGES)
    settings = recipe.optimiser.model_copy(update={"iterations": _PROBE_STEPS, "batch_size": batch})
    x = prepared.calibration.normalized(0, batch)
    step: list[float] = []
    forward: list[float] = []
    search: list[float] = []
    modules = prepared.network.partition.modules
    for index, (module, bits) in enumerate(zip(modules, prepared.cell.bits, strict=True)):
        start = time.perf_counter()
        y = run_batched([module], x)
        forward.append((time.perf_counter() - start) / batch)
        quantized = insert_quantizers(module, bits, recipe.scheme)
        start = time.perf_counter()
        calibrate([quantized], x, recipe.scale_exponent)
        search.append(time.perf_counter() - start)
        start = time.perf_counter()
        reconstruct([quantized], Inputs(x, x, y), recipe.method, settings, 0)
        images = batch_size(prepared.network, Span(index, index + 1), recipe)
        step.append((time.perf_counter() - start) / _PROBE_STEPS * images / batch)
        x = y
    tests = 0 if prepared.request.data is None else len(prepared.evaluation)
    return ModuleTimes(tuple(step), tuple(forward), tuple(search), recipe.calibration, tests)


def _draw(made: Plan, done: set[str]) -> Any:
    from modcap.flows.reports import plots

    levels: dict[str, int] = {}
    lanes: dict[str, int] = {}
    taken: Counter[int] = Counter()
    for job in made.jobs:
        levels[job.key] = 1 + max((levels[key] for key in made.waits[job.key]), default=-1)
        lanes[job.key] = taken[levels[job.key]]
        taken[levels[job.key]] += 1
    index = {job.key: number for number, job in enumerate(made.jobs)}
    edges = [
        (index[key], index[job.key])
        for job in made.jobs
        for key in made.waits[job.key]
        if levels[job.key] - levels[key] == 1
    ]
    keys = [job.key for job in made.jobs]
    return plots.plan_graph(
        [levels[k] for k in keys],
        [lanes[k] for k in keys],
        [job.kind for job in made.jobs],
        [key in done for key in keys],
        edges,
    )
