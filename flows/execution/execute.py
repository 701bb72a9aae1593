"""Runs plans in rounds, until all is done: what is lost meanwhile is computed again.

One round, which runs what is ready, is :mod:`modcap.flows.execution.attempt`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from modcap.core.errors import ModcapError
from modcap.core.serialization import Result
from modcap.flows.execution.attempt import attempt_jobs
from modcap.flows.execution.job_results import Results
from modcap.flows.execution.progress import Progress
from modcap.jobs.job import Cell, Job
from modcap.jobs.plan import CellPlan, Plan, plan
from modcap.tasks.storage.store import Store

__all__ = ["Counts", "Execution", "Results", "execute"]

_LOSSES = 5  # of one and the same result, which is computed again each time, before giving up


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
        most: int | None = None,
        refill: Callable[[], None] | None = None,
    ) -> None:
        """
        Args:
            cells: what to quantize.
            store: where results lie.
            progress: told of all that happens.
            most: batches of jobs at once, at most; by default what keeps the cluster busy.
            refill: puts the inputs of all cells into the store, where one was lost there.
        """
        self._cells, self._store, self._progress = cells, store, progress
        self._most, self._refill = most, refill
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
            new = attempt_jobs(todo, self._store, self._progress, self._most, goals)
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
    most: int | None = None,
    refill: Callable[[], None] | None = None,
) -> tuple[Plan, Results, Counts]:
    """Runs every job of ``cells`` that is not done yet; see :class:`Execution`.

    Raises:
        InputError: a job found the user's input wrong, or no node can hold a job.
        ModcapError: a job failed; what else could be done was done, and stays in the store.
    """
    execution = Execution(cells, store, progress, most, refill)
    execution.run()
    for error in execution.failures.values():
        raise error
    return execution.plan, execution.results, execution.counts
