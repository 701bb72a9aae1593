"""What orchestration costs: many trivial jobs, and one real run beside the sum of its jobs, one
at a time.

    python -m benchmarks.overhead [--jobs 10000] [--network mobilenet_v2_x0_5]

Runs on the local stack, in a store prefix of its own. Writes benchmarks/results/overhead.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import uuid
from typing import Any

from benchmarks.places import CHECKPOINTS, results
from modcap.flows.execution.connect import use_services


def request(network: str, eval_images: int | None = None, **recipe: Any) -> Any:
    """A quick run of a shipped checkpoint, with ``recipe`` laid over it."""
    from modcap.flows.requests.asked import Request
    from modcap.recipe import Recipe

    return Request(
        checkpoint=str(CHECKPOINTS / f"{network}.safetensors"),
        arch=f"modcap.zoo:{network}",
        data="fashion-mnist",
        eval_images=eval_images,
        recipe=Recipe.preset("quick", **{"a_bits": 4} | recipe),
    )


def trivial(count: int) -> dict[str, Any]:
    """Data-free capacities of one small network with ever other stride coefficients."""
    from prefect import flow

    from modcap.flows.execution.attempt import execute_jobs
    from modcap.flows.execution.connect import connected
    from modcap.flows.execution.progress import Progress
    from modcap.flows.quantize import THREADS
    from modcap.flows.requests.request import prepare
    from modcap.jobs.job import Job
    from modcap.jobs.kinds.capacity import DataFreeCapacity
    from modcap.quantization.bits import Bits

    prepared = prepare(request("vgg_tiny", 1000))
    network = prepared.cell.network
    modules = len(network.names)
    jobs = [
        Job(
            DataFreeCapacity(module=index % modules, bits=(Bits(2, 4),), alpha=1 + index / 1e6),
            {"network": network.digest},
            label=f"capacity {index}",
        )
        for index in range(count)
    ]

    @flow(name="overhead", task_runner=THREADS)
    def body() -> float:
        with connected() as store, Progress() as progress:
            prepared.upload(store)
            start = time.perf_counter()
            done = store.done(job.key for job in jobs)
            execute_jobs([job for job in jobs if job.key not in done], store, progress)
            seconds = time.perf_counter() - start
            assert store.done(job.key for job in jobs) == {job.key for job in jobs}
            return seconds

    seconds = body()
    return {"jobs": count, "seconds": round(seconds, 2), "jobs_per_second": round(count / seconds)}


def real(network: str) -> dict[str, Any]:
    """The quick preset on one network: wall time of its plan, and the sum of its jobs.

    That the workers start, once in a run and while the driver reads the checkpoint, is apart.
    """
    import ray
    from prefect import flow

    from modcap.flows.execution.connect import connected
    from modcap.flows.execution.execute import execute
    from modcap.flows.execution.progress import Progress
    from modcap.flows.quantize import THREADS
    from modcap.flows.requests.request import prepare
    from modcap.tasks.workers.ray_jobs import warm_up

    @flow(name="overhead", task_runner=THREADS)
    def body() -> dict[str, Any]:
        with connected() as store, Progress() as progress:
            # here, as in the flow: workers start meanwhile
            prepared = prepare(request(network, 1000, w_bits=2, k=0))
            prepared.upload(store)
            start = time.perf_counter()
            ray.get([warm_up.remote(store) for _ in range(2)])
            warm = time.perf_counter() - start
            start = time.perf_counter()
            plan, results, _ = execute([prepared.cell], store, progress, most=1)
            wall = time.perf_counter() - start
            total = sum(results[job.key].meta["seconds"] for job in plan.jobs)
            return {
                "network": network,
                "jobs": len(plan.jobs),
                "start_of_workers_seconds": round(warm, 2),
                "wall_seconds": round(wall, 2),
                "sum_of_jobs_seconds": round(total, 2),
                "overhead": round(wall / total - 1, 4),
            }

    return body()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="1,000 jobs, resnet18_narrow")
    parser.add_argument("--network", default="mobilenet_v2_x0_5")
    args = parser.parse_args()
    os.environ["MODCAP_PREFIX"] = f"overhead-{uuid.uuid4().hex[:8]}"
    use_services()
    jobs, network = (1000, "resnet18_narrow") if args.quick else (args.jobs, args.network)
    found = {"trivial": trivial(jobs), "real": real(network)}
    path = results("overhead", args.quick)
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
