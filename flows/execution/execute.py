"""Runs a plan: jobs as Prefect task runs, their work on Ray, their results in the store.

Every job is a Prefect task run of its own, except the small ones (data-free capacities and
selections take milliseconds): those that are ready together make one task run, a batch.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from graphlib import TopologicalSorter
from typing import Any

import ray
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.states import Cancelled

from modcap.core.errors import ModcapError
from modcap.core.serialization import Result
from modcap.flows.execution.prefect_control import FlowControl
from modcap.flows.execution.progress import Progress
from modcap.jobs.job import Cell, Job
from modcap.jobs.plan import Plan, plan
from modcap.tasks.storage.store import Store
from modcap.tasks.workers.ray_jobs import (
    MissingResult,
    OutOfMemory,
    ProgressBoard,
    run_jobs,
    run_jobs_on_gpu,
)
from modcap.tasks.workers.ray_resources import in_flight, refuse_impossible, request

__all__ = ["Counts", "Results", "execute", "execute_jobs"]

_WORKER_LOSSES = 3  # times that a job is tried again because its worker died
_GROWTH = 4  # times its estimate, at most, for a job that ran out of memory
_POLL_SECONDS = 0.5
_REPLANS = 5  # times that lost or damaged results are computed again, before giving up
_LOOKS = 3  # before Ray counts as gone
_WATCH_SECONDS = 2.0  # between two checks that it is there
_BATCH = 256  # small jobs in one task

Batch = tuple[Job, ...]
Future = PrefectFuture[list[dict[str, Any]]]


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


def execute(
    cells: Sequence[Cell],
    store: Store,
    progress: Progress,
    link: str = "",
    most: int | None = None,
) -> tuple[Plan, Results, Counts]:
    """Runs every job of ``cells`` that is not done yet, in rounds as selections open the plan.

    Args:
        cells: what to quantize.
        store: where results lie.
        progress: told of all that happens.
        link: address of the metrics; every job's log names it.
        most: task runs at once, at most; by default what keeps the cluster busy.

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
                execute_jobs(todo, store, progress, link, most)
            if not current.open:
                reused = sum(seen.values())
                return current, results, Counts(len(seen), len(seen) - reused, reused)
        except MissingResult as error:
            progress.note(f"{error}: computing it again")
    raise ModcapError("results keep disappearing from the store: check it: modcap store verify")


def execute_jobs(
    todo: Sequence[Job],
    store: Store,
    progress: Progress,
    link: str = "",
    most: int | None = None,
) -> None:
    """Runs the jobs of ``todo``, each once those of ``todo`` that it needs are done.

    Args:
        todo: what to do.
        store: where results go.
        progress: told of all that happens.
        link: address of the metrics; every job's log names it.
        most: task runs at once, at most; by default what keeps the cluster busy.
    """
    refuse_impossible(todo)
    by_key = {job.key: job for job in todo}
    order = TopologicalSorter(
        {job.key: [need for need in job.needs if need in by_key] for job in todo}
    )
    order.prepare()
    stop = threading.Event()
    control = FlowControl(stop)
    watch = _RayWatch(control)
    board = _Board()
    start = _starter(store, board.actor, stop, progress, link)
    waiting: deque[Job] = deque()
    finished: queue.Queue[str] = queue.Queue()
    running: dict[str, tuple[Batch, Future]] = {}
    with _stopping(stop, running):
        while order.is_active():
            waiting.extend(by_key[key] for key in order.get_ready())
            while waiting and len(running) < (most or watch.room):
                batch = _next_batch(waiting)
                future = start(batch)
                running[batch[0].key] = batch, future
                future.add_done_callback(partial(_note, finished, batch[0].key))
            # all that asks somebody comes now, while the jobs run; first, whether Ray is there
            watch.check()
            control.check()
            progress.running([job for batch, _ in running.values() for job in batch], board.read())
            for first in _finished(finished):
                batch, future = running.pop(first)
                future.wait()  # it is done, and knows its state now, without asking the server
                if future.state.is_cancelled():
                    waiting.extendleft(reversed(batch))  # the run was paused: it starts again
                    continue
                for job, meta in zip(batch, _outcome(future), strict=True):
                    progress.finished(job, meta)
                    order.done(job.key)


class _RayWatch:
    """Ends the process with one line where the cluster is gone.

    Ray itself would block every call for a minute and then end the process without a word of ours.
    """

    def __init__(self, control: FlowControl) -> None:
        self._control = control
        self._address = ray.get_runtime_context().gcs_address
        self._looked = time.monotonic()
        self.room = in_flight()  # for task runs; asking costs a call, and nodes come and go

    def check(self) -> None:
        if time.monotonic() - self._looked < _WATCH_SECONDS:
            return
        self._looked = time.monotonic()
        host, _, port = self._address.rpartition(":")
        for _ in range(_LOOKS):
            with (
                contextlib.suppress(OSError),
                socket.create_connection((host, int(port)), timeout=2),
            ):
                self.room = in_flight()
                return
            time.sleep(1)
        self._control.crash(
            f"Ray at {self._address} is gone: start the same command again, finished jobs are kept"
        )


def _note(finished: queue.Queue[str], first: str, future: Future) -> None:
    finished.put(first)


def _finished(finished: queue.Queue[str]) -> Iterator[str]:
    """All that finished by now, by their first keys; waits a moment for one."""
    with contextlib.suppress(queue.Empty):
        yield finished.get(timeout=_POLL_SECONDS)
        while True:
            yield finished.get_nowait()


def _next_batch(waiting: deque[Job]) -> Batch:
    """The first job that waits; a small one with the small ones behind it."""
    batch = [waiting.popleft()]
    while batch[0].work.small and waiting and waiting[0].work.small and len(batch) < _BATCH:
        batch.append(waiting.popleft())
    return tuple(batch)


def _starter(
    store: Store, board: Any, stop: threading.Event, progress: Progress, link: str
) -> Callable[[Batch], Future]:
    """A function that submits a batch as a Prefect task run, which waits for its Ray task."""
    batches: dict[str, Batch] = {}

    # without tags: Prefect asks for a concurrency slot for every tag, up to two seconds each time
    @task(task_run_name="{label}", persist_result=False, cache_policy=NO_CACHE)
    def job(label: str, kind: str, key: str) -> Any:
        batch = batches.pop(key)
        if link:
            get_run_logger().info("metrics: %s", link)
        growth = 1
        while True:
            try:
                return on_ray(batch, label, growth)
            except (OutOfMemory, ray.exceptions.OutOfMemoryError) as error:
                if growth == _GROWTH:
                    raise ModcapError(
                        f"{label}: out of memory with {growth} times its estimate, too: lower the "
                        "recipe's calibration, batch_size or activation_memory"
                    ) from error
            growth *= 2
            progress.note(f"{label}: out of memory, started again with {growth} times its estimate")
            refuse_impossible(batch, growth)

    def on_ray(batch: Batch, label: str, growth: int) -> Any:
        first = batch[0]
        remote = run_jobs_on_gpu if first.device == "cuda" else run_jobs
        options = request(first, growth) | {"name": label, "max_retries": _WORKER_LOSSES}
        reference = remote.options(**options).remote(batch, store, board)
        try:
            while not ray.wait([reference], timeout=_POLL_SECONDS)[0]:
                if stop.is_set():
                    ray.cancel(reference, force=True)
                    return Cancelled(message="the run was paused, cancelled or failed elsewhere")
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except BaseException:
            ray.cancel(reference, force=True)
            raise

    def start(batch: Batch) -> Future:
        first = batch[0]
        label = first.label if len(batch) == 1 else f"{len(batch)} jobs: {first.kind}"
        batches[first.key] = batch
        return job.with_options(name=first.kind).submit(label, first.kind, first.key)

    return start


def _outcome(future: Future) -> list[dict[str, Any]]:
    try:
        return future.result()
    except ModcapError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise ModcapError(f"a job failed: {type(error).__name__}: {first[-1]}") from error


class _Board:
    """What running jobs said last, without waiting for it: it only informs.

    One actor serves a driver, whatever it runs; its start takes a second.
    """

    def __init__(self) -> None:
        options = {"name": "modcap-progress", "get_if_exists": True}
        self.actor: Any = ProgressBoard.options(**options).remote()  # type: ignore[attr-defined]
        self._last: dict[str, tuple[int, int, float]] = {}
        self._asked: Any = None

    def read(self) -> dict[str, tuple[int, int, float]]:
        try:
            if self._asked is None:
                self._asked = self.actor.read.remote()
            elif ray.wait([self._asked], timeout=0)[0]:
                asked, self._asked = self._asked, None
                self._last = ray.get(asked)
        except ray.exceptions.RayError:  # its node died
            self._last = {}
        return self._last


@contextlib.contextmanager
def _stopping(stop: threading.Event, running: dict[str, tuple[Batch, Future]]) -> Iterator[None]:
    """Leaves no work behind: whatever ends the loop early stops what still runs on Ray."""
    try:
        yield
    finally:
        stop.set()
        for _, future in running.values():
            future.wait(timeout=10)
