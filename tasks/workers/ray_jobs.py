"""One Ray task per job: read what it needs from the store, compute, write the result back."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import ray
import torch

from modcap.core.errors import ModcapError
from modcap.core.serialization import Result
from modcap.jobs.job import Job
from modcap.jobs.run_job import run_job
from modcap.jobs.worker_cache import WorkerCache
from modcap.tasks.storage.objects import cache_folder
from modcap.tasks.storage.store import Store

__all__ = [
    "MissingResult",
    "OutOfMemory",
    "ProgressBoard",
    "run_jobs",
    "run_jobs_on_gpu",
    "warm_up",
]

_KEPT_RESULTS = 64
_TRANSFERS = 8  # requests to the store at once, for one batch of jobs
_NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"  # torch has no error class for it
_REPORT_SECONDS = 0.3  # least time between two reports of one job


class MissingResult(ModcapError):
    """A result that the plan counted on is gone or damaged: plan again."""


class OutOfMemory(ModcapError):
    """A job needed more memory than its worker, or its GPU, could give."""


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Where running jobs say how far they are; the driver reads it."""

    def __init__(self) -> None:
        self._state: dict[str, tuple[int, int, float]] = {}

    def report(self, key: str, step: int, steps: int, loss: float) -> None:
        self._state[key] = (step, steps, loss)

    def read(self) -> dict[str, tuple[int, int, float]]:
        return dict(self._state)


class _Worker:
    """What one worker process keeps between jobs: parsed inputs and recent results."""

    def __init__(self, store: Store) -> None:
        self.store = store
        folder = cache_folder("inputs")
        self.bench = WorkerCache(lambda digest: store.fetch_input(digest, folder).read_bytes())
        self._results: OrderedDict[str, Result] = OrderedDict()

    def result(self, key: str) -> Result:
        found = self._results.pop(key, None) or self.store.get(key)
        if found is None:
            raise MissingResult(f"the result of job {key[:12]} is not in the store any more")
        self.keep(key, found)
        return found

    def keep(self, key: str, result: Result) -> None:
        self._results[key] = result
        while len(self._results) > _KEPT_RESULTS:
            self._results.popitem(last=False)


@cache
def _worker(store: Store) -> _Worker:
    return _Worker(store)


def _reporter(board: Any, key: str) -> Any:
    last = 0.0

    def report(step: int, steps: int, loss: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _REPORT_SECONDS or step == steps:
            last = now
            board.report.remote(key, step, steps, loss)

    return report


@ray.remote
def warm_up(store: Store) -> None:
    """Lets a worker import torch and connect to the store before its first job comes."""
    _worker(store).store.ensure_bucket()


def attempt() -> int:
    """How often the task that asks was started before: its worker, or its node, was lost."""
    worker: Any = ray._private.worker.global_worker  # no public call tells it
    found: int = worker.core_worker.get_current_task_attempt_number()
    return found


def _run_jobs(jobs: Sequence[Job], store: Store, board: Any) -> list[dict[str, Any]]:
    """Computes ``jobs``, stores their results and returns the results' metas (small).

    Each meta also says, as ``attempt``, how often the task had been started before.

    Raises:
        MissingResult: a needed result is gone; computing it again mends that.
        OutOfMemory: an allocation failed.
    """
    try:
        return _compute(jobs, _worker(store), board)
    except (MemoryError, torch.cuda.OutOfMemoryError) as error:
        raise OutOfMemory(str(error) or type(error).__name__) from None
    except RuntimeError as error:
        if _NO_MEMORY not in str(error):
            raise
        raise OutOfMemory(str(error).splitlines()[0]) from None


run_jobs = ray.remote(_run_jobs)

run_jobs_on_gpu = ray.remote(max_calls=1)(_run_jobs)
"""In a process of its own: torch keeps the GPU that it saw first, and Ray may give another."""


def _compute(jobs: Sequence[Job], worker: _Worker, board: Any) -> list[dict[str, Any]]:
    store = worker.store
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        metas, stored = [], []
        for job in jobs:
            # computed since it was planned? A small job costs less than the question
            done = None if job.work.small else store.get(job.key)
            if done is None:
                needs = [worker.result(key) for key in job.needs]
                done = run_job(job, worker.bench, needs, _reporter(board, job.key))
                stored.append(pool.submit(store.put, job.key, done))
            worker.keep(job.key, done)
            metas.append(done.meta | {"attempt": attempt()})
        for put in stored:
            put.result()
    return metas
