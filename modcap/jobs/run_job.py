"""Runs one job, wherever that is: in a worker of a cluster, or in this process."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from modcap.core.errors import InputError
from modcap.core.serialization import Result
from modcap.jobs.environment import environment
from modcap.jobs.job import Job, Progress
from modcap.jobs.reproducible import reproducible
from modcap.jobs.worker_cache import WorkerCache

__all__ = ["run_job"]


def run_job(
    job: Job,
    cache: WorkerCache,
    needs: Sequence[Result],
    progress: Progress | None = None,
) -> Result:
    """Computes ``job``.

    Args:
        job: what to do.
        cache: where its inputs come from.
        needs: results of ``job.needs``, in that order.
        progress: told of the loss while a group is reconstructed.

    Raises:
        InputError: it asks for a device that is not there.
    """
    start = time.perf_counter()
    torch.set_num_threads(job.threads)
    if job.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "the recipe's device is cuda and torch finds no GPU here: take device cpu, or a node "
            "with a GPU and a CUDA build of torch"
        )
    with reproducible(job.device):
        result = job.work.run(job, cache, needs, progress)
    seconds = round(time.perf_counter() - start, 4)
    origin = {"kind": job.kind, "needs": list(job.needs), "inputs": job.inputs}
    made = {"seconds": seconds, "label": job.label, "environment": environment(job.device)}
    meta = result.meta | origin | made
    return Result(result.tensors, meta)
