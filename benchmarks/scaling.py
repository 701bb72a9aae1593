"""How a plan scales: measured on one and two workers, simulated on many.

    python -m benchmarks.scaling [--steps 60] [--quick]

Runs the same plan of independent jobs on the local stack, first with one job in flight and then
with two, one thread each, into prefixes of their own; beside it the same jobs in one and two bare
processes, which is what the machine allows; predicts both times from the costs of the
jobs; and simulates a sweep over a hundred checkpoints on up to 4,096 workers. Writes
benchmarks/results/scaling.json and docs/images/scaling.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.overhead import request
from benchmarks.places import DOCS, results
from modcap.flows.execution.connect import use_services

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
CHECKPOINTS_SIMULATED = 100


def measured(steps: int, networks: Sequence[str]) -> list[dict[str, Any]]:
    """Every module of some networks at three bit-widths, all at once: jobs that need no other."""
    from prefect import flow

    from modcap.flows.execution.attempt import execute_jobs
    from modcap.flows.execution.connect import connected
    from modcap.flows.execution.progress import Progress
    from modcap.flows.quantize import THREADS
    from modcap.flows.reports.plan_estimate import open_plan
    from modcap.flows.requests.sweep_grid import Sweep, prepare_sweep
    from modcap.jobs.kinds.reconstruct import Reconstruct
    from modcap.jobs.simulate import simulate

    fields = {"k": 0, "schedule": "waves", "path_share": 0, "optimiser": {"iterations": steps}}
    grid = Sweep(requests=tuple(request(n, **fields) for n in networks), w_bits=(2, 3, 4))
    prepared = prepare_sweep(grid)
    made = open_plan(prepared, None, {})
    jobs = [j for j in made.jobs if isinstance(j.work, Reconstruct)]

    @flow(name="scaling", task_runner=THREADS)
    def body() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        inputs: dict[str, bytes] = {}
        for p in prepared:
            inputs[p.cell.network.digest] = p.network.to_bytes()
            inputs[p.cell.calibration] = p.calibration.to_bytes()
        machine = side_by_side(jobs, inputs)
        with connected() as plain, Progress() as progress:
            for workers in (1, 2):
                prefix = f"scaling-{uuid.uuid4().hex[:8]}"
                store = dataclasses.replace(plain, prefix=prefix)
                for p in prepared:
                    p.upload(store)
                warm = [
                    dataclasses.replace(jobs[0], params={**jobs[0].params, "seed": 99 + i})
                    for i in range(workers)
                ]
                execute_jobs(warm, store, progress, most=workers)  # inputs are there, then
                start = time.perf_counter()
                execute_jobs(jobs, store, progress, most=workers)
                seconds = time.perf_counter() - start
                costs = {job.key: store.meta(job.key)["seconds"] for job in jobs}
                predicted = simulate(jobs, made.waits, costs, workers).makespan
                found.append(
                    {
                        "workers": workers,
                        "jobs": len(jobs),
                        "seconds": round(seconds, 2),
                        "sum_of_jobs": round(sum(costs.values()), 2),
                        "predicted": round(predicted, 2),
                        "predicted_over_measured": round(predicted / seconds, 4),
                    }
                )
                if workers == 1:
                    alone = costs
        one, two = found
        two["efficiency"] = round(one["seconds"] / (2 * two["seconds"]), 4)
        two["machine"] = machine
        two["efficiency_of_the_machine"] = round(two["efficiency"] / machine["efficiency"], 4)
        ahead = simulate(jobs, made.waits, alone, 2).makespan
        two["predicted_from_one_worker"] = round(ahead, 2)
        two["predicted_from_one_worker_over_measured"] = round(ahead / two["seconds"], 4)
        return found

    return body()


def bare(jobs: Sequence[Any], inputs: dict[str, bytes]) -> float:
    """Seconds of ``jobs`` in this process, one after another, with nothing around them."""
    from modcap.jobs.run_job import run_job
    from modcap.jobs.worker_cache import WorkerCache

    bench = WorkerCache(inputs.__getitem__)
    run_job(jobs[0], bench, [])  # imports and inputs are there, then
    start = time.perf_counter()
    for job in jobs:
        run_job(job, bench, [])
    return time.perf_counter() - start


def side_by_side(jobs: Sequence[Any], inputs: dict[str, bytes]) -> dict[str, float]:
    """What the machine itself allows: the jobs in one process, and half of them in each of two."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        one = pool.submit(bare, jobs, inputs).result()
        halves = [pool.submit(bare, jobs[i::2], inputs) for i in range(2)]
        two = max(half.result() for half in halves)
    return {"one": round(one, 2), "two": round(two, 2), "efficiency": round(one / (2 * two), 4)}


def simulated(schedule: str) -> dict[str, Any]:
    """A sweep of three bit-widths and eight k over a hundred networks like MobileNetV2 x0.5."""
    from modcap.flows.reports.plan_estimate import costs_of, open_plan
    from modcap.flows.requests.sweep_grid import Sweep, prepare_sweep
    from modcap.jobs.simulate import critical_path, simulate

    grid = Sweep(
        requests=(request("mobilenet_v2_x0_5", schedule=schedule, homogeneity="any"),),
        w_bits=(2, 3, 4),
        k=tuple(range(8)),
    )
    prepared = prepare_sweep(grid)
    known: dict[str, Any] = {}
    made = open_plan(prepared, None, known)
    costs, _ = costs_of(made, prepared, None, set(), known)
    longest, _ = critical_path(made.jobs, made.waits, costs)
    jobs, waits, seconds = [], {}, {}
    for copy in range(CHECKPOINTS_SIMULATED):
        keys: dict[str, str] = {}
        for job in made.jobs:
            inputs = job.inputs | {"network": f"{job.inputs['network']} {copy}"}
            needs = tuple(keys[need] for need in job.needs)
            copied = dataclasses.replace(job, inputs=inputs, needs=needs)
            keys[job.key] = copied.key
            waits[copied.key] = [keys[key] for key in made.waits[job.key]]
            seconds[copied.key] = costs[job.key]
            jobs.append(copied)
    makespans = {n: simulate(jobs, waits, seconds, n) for n in WORKERS}
    return {
        "schedule": schedule,
        "checkpoints": CHECKPOINTS_SIMULATED,
        "jobs": len(jobs),
        "work_hours": round(sum(seconds.values()) / 3600, 2),
        "critical_path_seconds": round(longest, 1),
        "workers": {
            n: {"seconds": round(m.makespan, 1), "efficiency": round(m.efficiency, 4)}
            for n, m in makespans.items()
        },
    }


def picture(found: dict[str, Any], path: Path) -> None:
    from modcap.flows.reports import plots

    lines = {
        s["schedule"]: [(int(n), v["seconds"]) for n, v in s["workers"].items()]
        for s in found["simulated"]
    }
    path.write_bytes(plots.png(plots.scaling(lines)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="one small network")
    args = parser.parse_args()
    networks = ("vgg_tiny",) if args.quick else ("resnet18_narrow", "vgg_tiny", "regnet_tiny")
    found: dict[str, Any] = {"simulated": [simulated(s) for s in ("sequential", "waves")]}
    os.environ["MODCAP_PREFIX"] = "scaling"
    use_services()
    found["measured"] = measured(args.steps, networks)
    path = results("scaling", args.quick)
    path.write_text(json.dumps(found, indent=1) + "\n")
    if not args.quick:
        picture(found, DOCS / "images/scaling.png")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
