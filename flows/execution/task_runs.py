"""What Prefect shows of jobs: a task run for each that optimises, and one for all others of a kind.

A task run costs the driver some 20 ms of CPU; a job without steps often takes less than that.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.states import Cancelled

from modcap.core.errors import ModcapError
from modcap.jobs.job import Job

__all__ = ["TaskRuns"]

_LAST_WORDS = 10.0  # seconds that task runs have to tell Prefect how they ended


class _TaskRun:
    """One on Prefect's page; a thread waits until its jobs are done."""

    def __init__(self, name: str, label: str, jobs: int, link: str) -> None:
        self._left = self._jobs = jobs
        self._over: Future[Any] = Future()
        self._failure: ModcapError | None = None
        over = self._over

        # without tags: Prefect asks for a concurrency slot for every tag, up to two seconds each
        @task(name=name, task_run_name=label, persist_result=False, cache_policy=NO_CACHE)
        def run() -> Any:
            if link:
                get_run_logger().info("metrics: %s", link)
            return over.result()

        self._shown: PrefectFuture[Any] = run.submit()

    def ended(self, error: ModcapError | None) -> None:
        """One of its jobs did."""
        self._left -= 1
        self._failure = self._failure or error
        if not self._left:
            self._end(None)

    def close(self) -> None:
        """No more of its jobs will end."""
        if not self._over.done():
            self._end(Cancelled(message=f"{self._jobs - self._left} of {self._jobs} jobs done"))

    def wait(self, until: float) -> None:
        """Until Prefect knows how it ended; not beyond that time, by the monotonic clock."""
        self._shown.wait(timeout=max(0.0, until - time.monotonic()))

    def _end(self, state: Any) -> None:
        if self._failure is not None:
            self._over.set_exception(self._failure)
        else:
            self._over.set_result(state)


class TaskRuns:
    """Those of some jobs. Use it as a context manager: none outlives it."""

    def __init__(self, jobs: Iterable[Job], link: str) -> None:
        """``link`` is the address of the metrics, which every task run's log names."""
        self._counts = Counter(job.kind for job in jobs if not job.work.steps)
        self._link = link
        self._runs: dict[str, _TaskRun] = {}

    def __enter__(self) -> TaskRuns:
        return self

    def __exit__(self, *_: object) -> None:
        for run in self._runs.values():
            run.close()
        until = time.monotonic() + _LAST_WORDS
        for run in self._runs.values():
            run.wait(until)

    def started(self, job: Job) -> None:
        """``job`` went to Ray, perhaps once more."""
        name = _name(job)
        if name not in self._runs:
            count = 1 if job.work.steps else self._counts[job.kind]
            label = job.label if count == 1 else f"{count} jobs: {job.kind}"
            self._runs[name] = _TaskRun(job.kind, label, count, self._link)

    def ended(self, job: Job, error: ModcapError | None = None) -> None:
        """``job`` is done, or failed."""
        self._runs[_name(job)].ended(error)


def _name(job: Job) -> str:
    return job.key if job.work.steps else job.kind
