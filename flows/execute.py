"""Runs a plan: every job a Prefect task run, its work a Ray task, its result in the store."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture

from flows.progress import Progress
from modcap.errors import InputError, ModcapError
from modcap.plan import Cell, Job, Plan, plan
from modcap.results import Result
from tasks.remote import MissingResult, ProgressBoard, run_job
from tasks.store import Store

__all__ = ["Counts", "execute"]

_WORKER_LOSSES = 3  # times that a job is tried again because its worker died
_POLL_SECONDS = 0.5
_REPLANS = 5  # times that lost or damaged results are computed again, before giving up


@dataclass
class Counts:
    """How many distinct jobs a run planned, executed and found done."""

    planned: int = 0
    executed: int = 0
    reused: int = 0


class Results:
    """Results of jobs as the driver sees them: read from the store once, then kept."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: dict[str, Result] = {}

    def get(self, key: str) -> Result | None:
        if key not in self._kept:
            found = self._store.get(key)
            if found is None:
                return None
            self._kept[key] = found
        return self._kept[key]

    def __getitem__(self, key: str) -> Result:
        found = self.get(key)
        if found is None:
            raise MissingResult(f"the result of job {key[:12]} is not in the store")
        return found


def execute(cells: list[Cell], store: Store, progress: Progress) -> tuple[Plan, Results, Counts]:
    """Runs every job of ``cells`` that is not done yet, in rounds as selections open the plan.

    Raises:
        InputError: a job found the user's input wrong, or no node can hold a job.
        ModcapError: a job failed; what was finished stays in the store.
    """
    results = Results(store)
    seen: dict[str, bool] = {}  # key -> was done before this run
    for _ in range(_REPLANS):
        try:
            while True:
                current = plan(cells, results.get)
                done = store.done(job.key for job in current.jobs)
                for job in current.jobs:
                    seen.setdefault(job.key, job.key in done)
                todo = [job for job in current.jobs if job.key not in done]
                progress.planned(current, done)
                if not todo:
                    break
                _refuse_impossible(todo)
                _run_jobs(todo, done, store, progress)
            if not current.open:
                reused = sum(seen.values())
                return current, results, Counts(len(seen), len(seen) - reused, reused)
        except MissingResult as error:
            progress.note(f"{error}: computing it again")
    raise ModcapError("results keep disappearing from the store: check its disk (modcap doctor)")


def _refuse_impossible(jobs: list[Job]) -> None:
    """A request that no node can meet would wait for ever: refuse it at once."""
    largest = max(
        (node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0
    )
    for job in jobs:
        if job.threads > largest:
            raise InputError(
                f"job '{job.label}' asks for {job.threads} CPU threads and the largest node of the "
                f"Ray cluster has {largest:g}: lower the recipe's threads, or add a larger node"
            )


def _run_jobs(jobs: list[Job], done: set[str], store: Store, progress: Progress) -> None:
    """Runs ``jobs`` with bounded concurrency, each once those that it needs are done."""
    limit = 2 + 2 * int(ray.cluster_resources().get("CPU", 1))
    board = ProgressBoard.remote()  # type: ignore[attr-defined]
    stop = threading.Event()
    start = _prefect_job(store, board, stop)
    waiting = {job.key: set(job.needs) - done for job in jobs}
    by_key = {job.key: job for job in jobs}
    finished: queue.Queue[tuple[str, PrefectFuture[dict[str, Any]]]] = queue.Queue()
    running: dict[str, PrefectFuture[dict[str, Any]]] = {}
    with _stopping(stop, running):
        while waiting or running:
            ready = [key for key, needs in waiting.items() if not needs]
            for key in ready[: max(0, limit - len(running))]:
                del waiting[key]
                future = start(by_key[key])
                running[key] = future
                future.add_done_callback(partial(_note, finished, key))
            with contextlib.suppress(queue.Empty):
                key, future = finished.get(timeout=_POLL_SECONDS)
                del running[key]
                meta = _outcome(future)
                for needs in waiting.values():
                    needs.discard(key)
                progress.finished(by_key[key], meta)
            progress.running([by_key[k] for k in running], _read(board))


def _note(
    finished: queue.Queue[tuple[str, PrefectFuture[dict[str, Any]]]],
    key: str,
    future: PrefectFuture[dict[str, Any]],
) -> None:
    finished.put((key, future))


def _prefect_job(
    store: Store, board: Any, stop: threading.Event
) -> Callable[[Job], PrefectFuture[dict[str, Any]]]:
    """A function that submits a job as a Prefect task run, which waits for its Ray task."""
    jobs: dict[str, Job] = {}

    @task(name="job", task_run_name="{label}", persist_result=False, cache_policy=NO_CACHE)
    def job(label: str, kind: str, key: str) -> dict[str, Any]:
        work = jobs[key]
        options = {"num_cpus": work.threads, "name": label, "max_retries": _WORKER_LOSSES}
        reference = run_job.options(**options).remote(work, store, board)
        try:
            while not ray.wait([reference], timeout=_POLL_SECONDS)[0]:
                if stop.is_set():
                    raise ModcapError(
                        "stopped, because another job failed or the run was cancelled"
                    )
            found: dict[str, Any] = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except BaseException:
            ray.cancel(reference, force=True)
            raise
        return found

    def start(work: Job) -> PrefectFuture[dict[str, Any]]:
        jobs[work.key] = work
        options = job.with_options(tags={f"kind:{work.kind.value}"})
        return options.submit(work.label, work.kind.value, work.key)

    return start


def _outcome(future: PrefectFuture[dict[str, Any]]) -> dict[str, Any]:
    try:
        return future.result()
    except ModcapError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise ModcapError(f"a job failed: {type(error).__name__}: {first[-1]}") from error


def _read(board: Any) -> dict[str, tuple[int, int, float]]:
    found: dict[str, tuple[int, int, float]] = ray.get(board.read.remote())
    return found


@contextlib.contextmanager
def _stopping(
    stop: threading.Event, running: dict[str, PrefectFuture[dict[str, Any]]]
) -> Iterator[None]:
    """Leaves no work behind: whatever ends the loop early stops what still runs on Ray."""
    try:
        yield
    finally:
        stop.set()
        for future in running.values():
            future.wait(timeout=10)
