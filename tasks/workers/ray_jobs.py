"""One Ray task per job: read what it needs from the store, compute, write the result back."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

import ray
import torch

from modcap.core.byte_cache import ByteCache
from modcap.core.errors import ModcapError
from modcap.core.serialization import Result
from modcap.jobs.job import Job
from modcap.jobs.run_job import run_job
from modcap.jobs.worker_cache import WorkerCache
from modcap.tasks.storage.objects import cache_folder
from modcap.tasks.storage.store import Store
from modcap.tasks.workers.gpus import keep_to_share
from modcap.tasks.workers.idle import Idle

__all__ = [
    "MissingResult",
    "OutOfMemory",
    "ProgressBoard",
    "run_jobs",
    "run_jobs_on_gpu",
    "warm_up",
]

_KEPT_RESULTS = 96 << 20  # bytes of results kept: part of the base of every estimate of memory
_IDLE_SECONDS = 5.0  # after which a worker gives up activations, which only its own jobs count
_TRANSFERS = 8  # requests to the store at once, for one batch of jobs
_NO_MEMORY = (  # torch has no error class for these
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_REPORT_SECONDS = 0.3  # least time between two reports of one job


class MissingResult(ModcapError):
    """Results that the plan counted on are gone or damaged: plan again.

    Attributes:
        keys: of their jobs.
    """

    def __init__(self, message: str, keys: Collection[str] = ()) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


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
        self.bench = WorkerCache(lambda digest: store.fetch_input(digest, folder))
        self.idle = Idle(self.bench.activations.clear, _IDLE_SECONDS)
        self._results: ByteCache[Result] = ByteCache(_KEPT_RESULTS)

    def needs(self, job: Job) -> list[Result]:
        """The results that a job needs."""
        kept = {key: result for key in job.needs if (result := self._results.get(key))}
        found = kept | self.store.get_all(set(job.needs) - kept.keys())
        for key, result in found.items():
            self.keep(key, result)
        if lost := set(job.needs) - found.keys():
            raise MissingResult(f"{job.label}: {len(lost)} of its needs are not stored", lost)
        return [found[key] for key in job.needs]

    def keep(self, key: str, result: Result) -> None:
        size = sum(tensor.nbytes for tensor in result.tensors.values())
        self._results.put(key, result, size)


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
        worker = _worker(store)
        if jobs[0].device == "cuda":
            keep_to_share(ray.get_runtime_context().get_assigned_resources().get("GPU", 1.0))
        with worker.idle.busy():
            return _compute(jobs, worker, board)
    except (MemoryError, torch.cuda.OutOfMemoryError) as error:
        raise OutOfMemory(str(error) or type(error).__name__) from None
    except RuntimeError as error:
        if not any(said in str(error) for said in _NO_MEMORY):
            raise
        raise OutOfMemory(str(error).splitlines()[0]) from None


run_jobs = ray.remote(_run_jobs)

run_jobs_on_gpu = ray.remote(max_calls=1)(_run_jobs)
"""In a process of its own: torch keeps the GPU that it saw first, and Ray may give another."""


def _compute(jobs: Sequence[Job], worker: _Worker, board: Any) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        found = [_result(job, worker, board, pool) for job in jobs]
        metas = []
        for job, future in zip(jobs, found, strict=True):
            result = future.result()  # perhaps another one's, who was first
            worker.keep(job.key, result)
            metas.append(result.meta | {"attempt": attempt()})
    return metas


def _result(job: Job, worker: _Worker, board: Any, pool: ThreadPoolExecutor) -> Future[Result]:
    """The result of ``job`` as the store has it, once ``pool`` has put it there."""
    # computed since it was planned? A small job costs less than the question
    known = None if job.work.small else worker.store.get(job.key)
    if known is not None:
        future: Future[Result] = Future()
        future.set_result(known)
        return future
    worker.bench.make_room(job.work.counts_activations or job.work.small)
    try:
        made = run_job(job, worker.bench, worker.needs(job), _reporter(board, job.key))
    finally:
        worker.bench.tidy()
    return pool.submit(worker.store.settle, job.key, made)
