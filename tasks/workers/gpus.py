"""Whether the cluster has GPUs that torch can use, and what of one a worker may take."""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["has_gpu", "keep_to_share"]

_SECONDS = 60  # for a worker that starts and imports torch
_CONTEXT = 512 << 20  # bytes that CUDA takes of each process, which estimates count, too


def has_gpu() -> bool:
    """Whether there are nodes with a GPU, and torch finds it on each of them; asked once for each
    connection, since that starts a process there."""
    return _asked(ray.get_runtime_context().get_job_id())


@cache
def _asked(connection: str) -> bool:
    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("GPU")]
    without = [node["NodeManagerAddress"] for node in nodes if not _found(node)]
    if without:
        logging.getLogger("modcap").warning(
            f"the GPU of {', '.join(without)} is not used, since torch does not find it there: "
            "install a CUDA build of torch, or say --device cpu"
        )
    return bool(nodes) and not without


def _found(node: dict[str, Any]) -> bool:
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    try:
        answer = _sees_gpu.options(scheduling_strategy=there).remote()
        return bool(ray.get(answer, timeout=_SECONDS))
    except (ray.exceptions.RayError, TimeoutError):  # it is gone, or has no environment for modcap
        return False


@ray.remote(num_cpus=0, max_calls=1)
def _sees_gpu() -> bool:
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides what the task did not ask for
    import torch

    return torch.cuda.is_available()


def keep_to_share(share: float) -> None:
    """Keeps this process to its ``share`` of the memory of its GPU: what others may take is theirs,
    and a job that needs more than its estimate ends, not one beside it."""
    import torch

    if share < 1 and torch.cuda.is_available():  # else the job itself is refused
        own = share - _CONTEXT / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(max(0.01, own))
