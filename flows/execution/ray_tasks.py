"""Batches of jobs as Ray tasks: started, waited for, tried again with more memory, cancelled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from botocore.exceptions import BotoCoreError, ClientError

from modcap.core.errors import Lost, ModcapError, Unavailable
from modcap.flows.execution.progress import Progress
from modcap.jobs.job import Job
from modcap.tasks.storage.store import Store
from modcap.tasks.workers.ray_jobs import OutOfMemory, run_jobs, run_jobs_on_gpu
from modcap.tasks.workers.ray_resources import refuse_impossible, request

__all__ = ["Batch", "Outcome", "RayTasks", "label_of"]

_WORKER_LOSSES = 3  # times that a job is tried again because its worker died
_GROWTH = 4  # times its estimate, at most, for a job that ran out of memory
_OUT_OF_MEMORY = (OutOfMemory, ray.exceptions.OutOfMemoryError)

Batch = tuple[Job, ...]
Outcome = list[dict[str, Any]] | ModcapError
"""Of a batch: the metas of its results, or what was wrong."""


def label_of(batch: Batch) -> str:
    """A batch, for people."""
    return batch[0].label if len(batch) == 1 else f"{len(batch)} jobs: {batch[0].kind}"


@dataclass(frozen=True)
class _Try:
    batch: Batch
    growth: int  # factor on its estimated memory


class RayTasks:
    """What runs on Ray for one driver."""

    def __init__(self, store: Store, board: Any, progress: Progress) -> None:
        """``board`` is the actor that running jobs report to."""
        self._store, self._board, self._progress = store, board, progress
        self._running: dict[Any, _Try] = {}  # by the reference to what it returns

    def __len__(self) -> int:
        return len(self._running)

    @property
    def jobs(self) -> list[Job]:
        """All that run, or wait for a worker."""
        return [job for each in self._running.values() for job in each.batch]

    def start(self, batch: Batch, growth: int = 1) -> None:
        """Submits ``batch`` as one Ray task; its first job says what it asks for."""
        remote = run_jobs_on_gpu if batch[0].device == "cuda" else run_jobs
        options = request(batch[0], growth) | {
            "name": label_of(batch),
            "max_retries": _WORKER_LOSSES,
        }
        reference = remote.options(**options).remote(batch, self._store, self._board)
        self._running[reference] = _Try(batch, growth)

    def finished(self, seconds: float) -> Iterator[tuple[Batch, Outcome]]:
        """What ended by now; waits so long for the first.

        Raises:
            Lost: a service that all jobs need is gone.
        """
        if not self._running:
            return
        ray.wait(list(self._running), timeout=seconds)
        ended, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        for reference in ended:
            tried = self._running.pop(reference)
            try:
                yield tried.batch, _result(reference, label_of(tried.batch))
            except _OUT_OF_MEMORY as error:
                if refused := self._grow(tried):
                    refused.__cause__ = error
                    yield tried.batch, refused

    def _grow(self, tried: _Try) -> ModcapError | None:
        """Starts it with more memory, or says why not."""
        label, growth = label_of(tried.batch), 2 * tried.growth
        job = tried.batch[0]
        if growth > _GROWTH:
            lever = "" if job.device == "cuda" else "lower the recipe's activation_memory, or "
            return ModcapError(
                f"{label}: out of memory with {tried.growth} times its estimate, too: {lever}give "
                "smaller images (--preprocess, crop=…)"
            )
        if job.device == "cuda" and request(job, growth) == request(job, tried.growth):
            return ModcapError(
                f"{label}: out of memory on a whole GPU: take device cpu, a larger GPU, or give "
                "fewer calibration images or smaller ones (--preprocess, crop=…)"
            )
        self._progress.note(
            f"{label}: out of memory, started again with {growth} times its estimate"
        )
        try:
            refuse_impossible(tried.batch, growth)
        except Unavailable as error:  # of this job alone
            return ModcapError(str(error))
        self.start(tried.batch, growth)
        return None

    def cancel(self) -> list[Batch]:
        """Stops whatever runs, at once; returns what it was, in the order of its start."""
        stopped = list(self._running.items())
        self._running.clear()
        for reference, _ in stopped:
            ray.cancel(reference, force=True)
        return [each.batch for _, each in stopped]


def _result(reference: Any, label: str) -> Outcome:
    try:
        found: list[dict[str, Any]] = ray.get(reference)
        return found
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, _OUT_OF_MEMORY):
            raise error.cause from None
        return _of_the_job(error.cause)
    except ray.exceptions.WorkerCrashedError:
        return ModcapError(f"{label}: its worker died {_WORKER_LOSSES + 1} times")
    except _OUT_OF_MEMORY:
        raise
    except ray.exceptions.RayError as error:
        raise Lost(_said(error)) from error


def _of_the_job(cause: BaseException) -> ModcapError:
    """What a job raised, as an error of its own; the store's failures are everybody's."""
    if isinstance(cause, (BotoCoreError, ClientError, ray.exceptions.RayError)):
        raise Lost(_said(cause)) from cause
    return cause if isinstance(cause, ModcapError) else ModcapError(_said(cause))


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"a job failed: {type(error).__name__}: {lines[-1]}"
