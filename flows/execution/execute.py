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
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from graphlib import TopologicalSorter
from typing import Any

import ray
from botocore.exceptions import BotoCoreError, ClientError
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.states import Cancelled

from modcap.core.errors import ModcapError, Unavailable
from modcap.core.serialization import Result
from modcap.flows.execution.job_results import Results
from modcap.flows.execution.prefect_control import FlowControl
from modcap.flows.execution.progress import Progress
from modcap.jobs.job import Cell, Job
from modcap.jobs.plan import CellPlan, Plan, plan
from modcap.tasks.storage.store import MissingInput, Store
from modcap.tasks.workers.ray_jobs import (
    MissingResult,
    OutOfMemory,
    ProgressBoard,
    run_jobs,
    run_jobs_on_gpu,
)
from modcap.tasks.workers.ray_resources import in_flight, refuse_impossible, request

__all__ = ["Counts", "Execution", "Results", "execute", "execute_jobs"]

_WORKER_LOSSES = 3  # times that a job is tried again because its worker died
_GROWTH = 4  # times its estimate, at most, for a job that ran out of memory
_POLL_SECONDS = 0.5
_LOSSES = 5  # of one and the same result, which is computed again each time, before giving up
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


class Execution:
    """Cells on their way: every job that is not done yet, in rounds as selections open the plan.

    A job that fails ends the cells that need it; the others go on. What is lost in the store, at
    any time until the last result was read, is computed again in one more round.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        store: Store,
        progress: Progress,
        link: str = "",
        most: int | None = None,
        refill: Callable[[], None] | None = None,
    ) -> None:
        """
        Args:
            cells: what to quantize.
            store: where results lie.
            progress: told of all that happens.
            link: address of the metrics; every job's log names it.
            most: task runs at once, at most; by default what keeps the cluster busy.
            refill: puts the inputs of all cells into the store, where one was lost there.
        """
        self._cells, self._store, self._progress = cells, store, progress
        self._link, self._most, self._refill = link, most, refill
        self.results = Results(store, self._again)
        self.counts = Counts()
        self.plan = Plan((), (), open=True)
        self.failures: dict[str, ModcapError] = {}  # of jobs
        self._done: set[str] = set()  # keys
        self._before: set[str] = set()  # done before this run
        self._executed: set[str] = set()
        self._lost: Counter[str] = Counter()

    def run(self) -> None:
        """Does all that can be done.

        Raises:
            InputError: no node can hold a job.
            ModcapError: the store loses what is put there.
        """
        while todo := self._todo():
            goals = [self.plan.needed(cell) for cell in self._alive()]
            new = attempt_jobs(todo, self._store, self._progress, self._link, self._most, goals)
            self._done |= new.done
            self._executed |= new.done
            self.failures |= new.failures
            if new.lost:
                self._lose(new.lost)
            if new.unfed:
                self._feed(new.unfed)
        executed = len(self._executed)
        self.counts.planned = len(self.plan.jobs)
        self.counts.executed, self.counts.reused = executed, len(self._before - self._executed)
        needed = (self.plan.needed(cell) for cell in self._alive())
        self.results.expect(key for keys in needed for key in keys)

    def _todo(self) -> list[Job]:
        """Plans again; the jobs that are not done, and that a cell needs of which none failed."""
        self.plan = plan(self._cells, self._known)
        keys = {job.key for job in self.plan.jobs}
        found = self._store.done(keys - self._done)
        self._before |= found - self._executed
        self._done |= found
        self._progress.planned(self.plan, self._done & keys)
        wanted = {key for cell in self._alive() for key in self.plan.needed(cell)}
        return [job for job in self.plan.jobs if job.key in wanted - self._done]

    def _known(self, key: str) -> Result | None:
        found = self.results.get(key)
        if found is None and key in self._done:
            self._lose([key])
        return found

    def _alive(self) -> list[CellPlan]:
        return [cell for cell in self.plan.cells if self.failure(cell) is None]

    def failure(self, cell: CellPlan) -> ModcapError | None:
        """Why a cell cannot be finished, or None."""
        if not self.failures:
            return None
        needed = self.plan.needed(cell)
        return next((error for key, error in self.failures.items() if key in needed), None)

    def _again(self, lost: Iterable[str]) -> None:
        keys = set(lost)
        self._lose(keys)
        self.run()
        for cell in self.plan.cells:
            error = self.failure(cell)
            if error is not None and keys & self.plan.needed(cell):
                raise error

    def _lose(self, keys: Iterable[str]) -> None:
        """What is done is looked up anew: more may be gone."""
        self._done.clear()
        for key in keys:
            self._progress.note(f"the result of job {key[:12]} is gone or damaged: once more")
            self._lost[key] += 1
            if self._lost[key] > _LOSSES:
                raise ModcapError(
                    f"the result of job {key[:12]} disappeared {_LOSSES} times from the store: "
                    "check it: modcap store verify"
                )

    def _feed(self, error: ModcapError) -> None:
        self._lost["inputs"] += 1
        if self._refill is None or self._lost["inputs"] > _LOSSES:
            raise error
        self._progress.note("an input of jobs is gone or damaged in the store: put there again")
        self._refill()


def execute(
    cells: Sequence[Cell],
    store: Store,
    progress: Progress,
    link: str = "",
    most: int | None = None,
    refill: Callable[[], None] | None = None,
) -> tuple[Plan, Results, Counts]:
    """Runs every job of ``cells`` that is not done yet; see :class:`Execution`.

    Raises:
        InputError: a job found the user's input wrong, or no node can hold a job.
        ModcapError: a job failed; what else could be done was done, and stays in the store.
    """
    execution = Execution(cells, store, progress, link, most, refill)
    execution.run()
    for error in execution.failures.values():
        raise error
    return execution.plan, execution.results, execution.counts


@dataclass
class Attempt:
    """What became of jobs: keys of those that are done, what was wrong with others, keys of
    results that are lost, and what was said of an input that is."""

    done: set[str] = field(default_factory=set)
    failures: dict[str, ModcapError] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    unfed: ModcapError | None = None


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

    Raises:
        ModcapError: one failed.
    """
    attempt = attempt_jobs(todo, store, progress, link, most, [{job.key for job in todo}])
    for error in (*attempt.failures.values(), attempt.unfed):
        if error is not None:
            raise error
    if attempt.lost:
        raise MissingResult("a result that a job needs is not in the store", attempt.lost)


def attempt_jobs(
    todo: Sequence[Job],
    store: Store,
    progress: Progress,
    link: str,
    most: int | None,
    goals: Sequence[set[str]],
) -> Attempt:
    """Like :func:`execute_jobs`; a job that fails ends those of ``goals``, sets of keys, that it is
    part of, and what serves no other goal is not started."""
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
    alone: set[str] = set()  # keys of small jobs that failed in a batch
    finished: queue.Queue[str] = queue.Queue()
    running: dict[str, tuple[Batch, Future]] = {}
    attempt = Attempt()
    with _stopping(stop, running):
        while goals:
            waiting.extend(by_key[key] for key in order.get_ready())
            while waiting and len(running) < (most or watch.room):
                batch = _next_batch(waiting, alone)
                future = start(batch)
                running[batch[0].key] = batch, future
                future.add_done_callback(partial(_note, finished, batch[0].key))
            if not running:
                break
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
                try:
                    metas = _outcome(future)
                except MissingResult as error:
                    attempt.lost |= set(error.keys)
                except MissingInput as error:
                    attempt.unfed = error
                except Unavailable:
                    raise
                except ModcapError as error:
                    if len(batch) > 1:
                        alone |= {job.key for job in batch}
                        waiting.extendleft(reversed(batch))
                        continue
                    progress.note(f"{batch[0].label}: {error}")
                    attempt.failures[first] = error
                    goals = [goal for goal in goals if first not in goal]
                    waiting = deque(j for j in waiting if any(j.key in goal for goal in goals))
                else:
                    for job, meta in zip(batch, metas, strict=True):
                        progress.finished(job, meta)
                        attempt.done.add(job.key)
                        order.done(job.key)
    return attempt


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


def _next_batch(waiting: deque[Job], alone: set[str]) -> Batch:
    """The first job that waits; a small one with the small ones behind it."""

    def shares(job: Job) -> bool:
        return job.work.small and job.key not in alone

    batch = [waiting.popleft()]
    while shares(batch[0]) and waiting and shares(waiting[0]) and len(batch) < _BATCH:
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
            try:
                refuse_impossible(batch, growth)
            except Unavailable as error:  # of this job alone
                raise ModcapError(str(error)) from None

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
            raise _own(error.cause) from None
        except ray.exceptions.WorkerCrashedError:
            raise ModcapError(f"{label}: its worker died {_WORKER_LOSSES + 1} times") from None
        except BaseException:
            ray.cancel(reference, force=True)
            raise

    def start(batch: Batch) -> Future:
        first = batch[0]
        label = first.label if len(batch) == 1 else f"{len(batch)} jobs: {first.kind}"
        batches[first.key] = batch
        return job.with_options(name=first.kind).submit(label, first.kind, first.key)

    return start


def _own(cause: BaseException) -> BaseException:
    """What a job raised, as an error of its own; the store's failures are everybody's."""
    if isinstance(cause, (ModcapError, BotoCoreError, ClientError, ray.exceptions.RayError)):
        return cause
    return ModcapError(_said(cause))


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"a job failed: {type(error).__name__}: {lines[-1]}"


def _outcome(future: Future) -> list[dict[str, Any]]:
    try:
        return future.result()
    except ModcapError:
        raise
    except Exception as error:
        raise Unavailable(_said(error)) from error


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
