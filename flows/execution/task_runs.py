"""What Prefect shows of jobs: a task run for each that optimises, and one for all others of a kind.

A task run costs the driver some 20 ms of CPU; a job without steps often takes less than that.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
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

    def __init__(self, name: str, label: str, jobs: int) -> None:
        self._left = self._jobs = jobs
        self._over: Future[Any] = Future()
        self._failure: ModcapError | None = None
        self._seconds, self._last = 0.0, ""
        over = self._over

        # without tags: Prefect asks for a concurrency slot for every tag, up to two seconds each
        @task(name=name, task_run_name=label, persist_result=False, cache_policy=NO_CACHE)
        def run() -> Any:
            get_run_logger().info("%s: given to Ray", label)
            ended = over.result()
            get_run_logger().info("%s", self._said())
            return ended

        self._shown: PrefectFuture[Any] = run.submit()

    def ended(self, meta: Mapping[str, Any], error: ModcapError | None) -> None:
        """One of its jobs did, with this result."""
        self._left -= 1
        self._failure = self._failure or error
        self._seconds += meta.get("seconds", 0.0)
        self._last = f", relative error {meta['error']:.3g}" if "error" in meta else ""
        if not self._left:
            self._end(None)

    def _said(self) -> str:
        """What came of it, such as ``12.3 s on workers, relative error 0.0123``."""
        if self._left:
            return f"{self._jobs - self._left} of {self._jobs} jobs done"
        return f"{self._seconds:.1f} s on workers{self._last if self._jobs == 1 else ''}"

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

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._counts = Counter(job.kind for job in jobs if not job.work.steps)
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
            self._runs[name] = _TaskRun(job.kind, label, count)

    def ended(self, job: Job, meta: Mapping[str, Any]) -> None:
        """``job`` is done, with this result."""
        self._runs[_name(job)].ended(meta, None)

    def failed(self, job: Job, error: ModcapError) -> None:
        """``job`` is not done."""
        self._runs[_name(job)].ended({}, error)


def _name(job: Job) -> str:
    return job.key if job.work.steps else job.kind
