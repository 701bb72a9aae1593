"""What a job asks of Ray: CPU threads, memory, a share of a GPU; and what the cluster has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any

import ray

from modcap.core.errors import Unavailable
from modcap.jobs.job import Job

__all__ = ["GPU_MEMORY", "MOST_IN_FLIGHT", "in_flight", "refuse_impossible", "request"]

MOST_IN_FLIGHT = 1000
"""Ray tasks at once, at most; Prefect waits on a thread for each that optimises."""
_LEAST_IN_FLIGHT = 60

GPU_MEMORY = "gpu_memory"
"""Custom resource by which a node says how many bytes each of its GPUs has."""


def request(job: Job, growth: int = 1) -> dict[str, Any]:
    """Options of the Ray task that runs ``job``.

    Args:
        job: what will run.
        growth: factor on its estimated memory, once it has run out of it.
    """
    asked: dict[str, Any] = {"num_cpus": job.threads, "memory": job.room.memory * growth}
    if job.device == "cuda":
        asked["num_gpus"] = min(1.0, (job.room.gpus or _share(job)) * growth)
        asked["memory"] = 0  # what it needs lies on the GPU
    return asked


def in_flight() -> int:
    """How many Ray tasks keep this cluster busy: some wait, so that no worker does."""
    if os.environ.get("MODCAP_AUTOSCALING"):
        return MOST_IN_FLIGHT  # what waits is what makes the cluster grow
    threads = sum(node.get("CPU", 0) for node in _nodes())
    return min(MOST_IN_FLIGHT, max(_LEAST_IN_FLIGHT, int(2 * threads)))


def _share(job: Job) -> float:
    """The share of a GPU whose memory holds ``job``, in hundredths; the smallest GPU counts."""
    sizes = [node[GPU_MEMORY] for node in _nodes() if node.get(GPU_MEMORY) and node.get("GPU")]
    return min(1.0, math.ceil(100 * job.room.memory / min(sizes)) / 100) if sizes else 1.0


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def refuse_impossible(jobs: Iterable[Job], growth: int = 1) -> None:
    """Refuses at once what no node can hold: it would wait for ever.

    A cluster that adds nodes by itself says so (MODCAP_AUTOSCALING=1); nothing is refused there.

    Raises:
        Unavailable: a job asks for more than any node has; the message says what is there.
    """
    if os.environ.get("MODCAP_AUTOSCALING"):
        return
    nodes = _nodes()
    fitting: set[tuple[Any, ...]] = set()
    for job in jobs:
        asked = request(job, growth)
        kind = tuple(asked.values())
        if kind not in fitting and not any(_fits(asked, node) for node in nodes):
            there = "; ".join(sorted({_said(node) for node in nodes})) or "none"
            raise Unavailable(
                f"job '{job.label}' asks for {_asked(asked)}, and no node of the Ray cluster has "
                f"that (nodes: {there}): {_lever(job, asked, nodes)}add a larger node"
            )
        fitting.add(kind)


def _lever(job: Job, asked: dict[str, Any], nodes: Iterable[dict[str, float]]) -> str:
    """What of the recipe, or of the images, makes ``job`` ask for less than it lacks."""
    nodes = list(nodes)
    most = {name: max((n.get(r, 0) for n in nodes), default=0) for name, r in _RESOURCES.items()}
    levers = []
    if asked["num_cpus"] > most["num_cpus"]:
        levers.append("lower the recipe's threads")
    if asked.get("num_gpus", 0) > most["num_gpus"]:
        levers.append("lower the recipe's gpus or take device cpu")
    if asked["memory"] > most["memory"]:
        held = 2 * (job.room.activation_bytes or 0)  # by the job, and by its worker between two
        if job.work.counts_activations and asked["memory"] - held <= most["memory"]:
            levers.append("lower the recipe's activation_memory")
        else:
            levers.append("give smaller images (--preprocess with a smaller crop=…)")
    return "".join(f"{lever}, or " for lever in levers)


_RESOURCES = {"num_cpus": "CPU", "memory": "memory", "num_gpus": "GPU"}


def _fits(asked: dict[str, Any], node: dict[str, float]) -> bool:
    return all(node.get(_RESOURCES[name], 0) >= amount for name, amount in asked.items())


def _asked(asked: dict[str, Any]) -> str:
    return _amounts(asked["num_cpus"], asked["memory"], asked.get("num_gpus", 0))


def _said(node: dict[str, float]) -> str:
    return _amounts(node.get("CPU", 0), node.get("memory", 0), node.get("GPU", 0))


def _amounts(cpus: float, memory: float, gpus: float) -> str:
    parts = [f"{cpus:g} CPU threads"]
    if memory:
        parts.append(f"{memory / 2**30:.1f} GiB")
    if gpus:
        parts.append(f"{gpus:g} GPU")
    return ", ".join(parts)
