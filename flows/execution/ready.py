"""Which jobs may start: those whose needs are done, and that a goal still waits for."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from graphlib import TopologicalSorter

from modcap.flows.execution.ray_tasks import Batch
from modcap.jobs.job import Job

__all__ = ["Ready"]

_BATCH = 256  # small jobs in one Ray task


class Ready:
    """Jobs in the order of their needs, in batches: small ones that are ready together share one.

    A goal is a set of keys; what serves no goal is not started.
    """

    def __init__(self, todo: Sequence[Job], goals: Sequence[set[str]]) -> None:
        self._by_key = {job.key: job for job in todo}
        self._goals = list(goals)
        self._order = TopologicalSorter(
            {job.key: [need for need in job.needs if need in self._by_key] for job in todo}
        )
        self._order.prepare()
        self._waiting: deque[Job] = deque()
        self._alone: set[str] = set()  # keys of small jobs that failed in a batch

    def next(self) -> Batch | None:
        """What may start now; None where nothing may."""
        if not self._goals:
            return None
        self._waiting.extend(self._by_key[key] for key in self._order.get_ready())
        if not self._waiting:
            return None
        batch = [self._waiting.popleft()]
        while (
            self._shares(batch[0])
            and self._waiting
            and self._shares(self._waiting[0])
            and len(batch) < _BATCH
        ):
            batch.append(self._waiting.popleft())
        return tuple(batch)

    def _shares(self, job: Job) -> bool:
        return job.work.small and job.key not in self._alone

    @property
    def wanted(self) -> bool:
        """Whether any goal is left."""
        return bool(self._goals)

    def done(self, batch: Batch) -> None:
        """What needs it may start."""
        self._order.done(*(job.key for job in batch))

    def again(self, batch: Batch) -> None:
        """It was stopped, and comes first."""
        self._waiting.extendleft(reversed(batch))

    def apart(self, batch: Batch) -> None:
        """One of it failed: each starts once more, by itself."""
        self._alone |= {job.key for job in batch}
        self.again(batch)

    def give_up(self, job: Job) -> None:
        """It failed: the goals that it is part of are none any more."""
        self._goals = [goal for goal in self._goals if job.key not in goal]
        wanted = [j for j in self._waiting if any(j.key in goal for goal in self._goals)]
        self._waiting = deque(wanted)
