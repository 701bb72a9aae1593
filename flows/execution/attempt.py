"""Runs jobs, each once those that it needs are done: the work on Ray, a view of it in Prefect."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from modcap.core.errors import ModcapError, Unavailable
from modcap.flows.execution.prefect_control import FlowControl
from modcap.flows.execution.progress import Progress
from modcap.flows.execution.progress_board import Board
from modcap.flows.execution.ray_tasks import Batch, Outcome, RayTasks
from modcap.flows.execution.ray_watch import RayWatch
from modcap.flows.execution.ready import Ready
from modcap.flows.execution.task_runs import TaskRuns
from modcap.jobs.job import Job
from modcap.tasks.storage.store import MissingInput, Store
from modcap.tasks.workers.ray_jobs import MissingResult
from modcap.tasks.workers.ray_resources import refuse_impossible

__all__ = ["Attempt", "attempt_jobs", "execute_jobs"]

_POLL_SECONDS = 0.5


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
    most: int | None = None,
) -> None:
    """Runs the jobs of ``todo``, each once those of ``todo`` that it needs are done.

    Args:
        todo: what to do.
        store: where results go.
        progress: told of all that happens.
        most: batches at once, at most; by default what keeps the cluster busy.

    Raises:
        ModcapError: one failed.
    """
    attempt = attempt_jobs(todo, store, progress, most, [{job.key for job in todo}])
    for error in (*attempt.failures.values(), attempt.unfed):
        if error is not None:
            raise error
    if attempt.lost:
        raise MissingResult("a result that a job needs is not in the store", attempt.lost)


def attempt_jobs(
    todo: Sequence[Job],
    store: Store,
    progress: Progress,
    most: int | None,
    goals: Sequence[set[str]],
) -> Attempt:
    """Like :func:`execute_jobs`; a job that fails ends those of ``goals``, sets of keys, that it is
    part of, and what serves no other goal is not started."""
    refuse_impossible(todo)
    board = Board()
    with ExitStack() as last:
        shown = last.enter_context(TaskRuns(todo))
        tasks = RayTasks(store, board.actor, progress)
        last.callback(tasks.cancel)  # whatever ends this early leaves no work behind
        running = _Running(Ready(todo, goals), tasks, shown, progress)
        control = FlowControl(running.stop)
        watch = RayWatch(control)
        while running.start(most or watch.room):
            # all that asks somebody comes now, while the jobs run; first, whether Ray is there
            watch.check()
            control.check()
            progress.running(tasks.jobs, board.read())
            for batch, outcome in tasks.finished(_POLL_SECONDS):
                running.ended(batch, outcome)
    return running.attempt


class _Running:
    """Jobs that are ready, at work and done."""

    def __init__(self, ready: Ready, tasks: RayTasks, shown: TaskRuns, progress: Progress) -> None:
        self._ready, self._tasks, self._shown, self._progress = ready, tasks, shown, progress
        self.attempt = Attempt()

    def start(self, most: int) -> bool:
        """Starts what may start; whether there is anything to wait for."""
        while len(self._tasks) < most and (batch := self._ready.next()):
            for job in batch:
                self._shown.started(job)
            self._tasks.start(batch)
        return self._ready.wanted and len(self._tasks) > 0

    def stop(self) -> None:
        """Stops what runs; it starts again when the run goes on."""
        for batch in reversed(self._tasks.cancel()):
            self._ready.again(batch)

    def ended(self, batch: Batch, outcome: Outcome) -> None:
        """Keeps what came of a batch."""
        if isinstance(outcome, ModcapError):
            self._failed(batch, outcome)
            return
        for job, meta in zip(batch, outcome, strict=True):
            self._progress.finished(job, meta)
            self._shown.ended(job, meta)
            self.attempt.done.add(job.key)
        self._ready.done(batch)

    def _failed(self, batch: Batch, error: ModcapError) -> None:
        if isinstance(error, MissingResult):
            self.attempt.lost |= set(error.keys)
        elif isinstance(error, MissingInput):
            self.attempt.unfed = error
        elif isinstance(error, Unavailable):
            raise error
        elif len(batch) > 1:
            self._ready.apart(batch)
            return
        else:
            self._progress.note(f"{batch[0].label}: {error}")
            self.attempt.failures[batch[0].key] = error
            self._ready.give_up(batch[0])
        for job in batch:
            self._shown.failed(job, error)
