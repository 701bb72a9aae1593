"""How long a plan takes on N workers, and what it costs: list scheduling, simulated."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modcap.jobs.job import Job

__all__ = ["Simulated", "critical_path", "simulate"]

Waits = Mapping[str, Sequence[str]]  # as ``Plan.waits`` gives them


@dataclass(frozen=True)
class Simulated:
    """Seconds from the first start to the last end, and seconds that workers were busy."""

    makespan: float
    busy: float
    workers: int

    @property
    def efficiency(self) -> float:
        """Share of the workers' time that was work."""
        return self.busy / (self.workers * self.makespan) if self.makespan else 1.0


def simulate(
    jobs: Sequence[Job], waits: Waits, seconds: Mapping[str, float], workers: int
) -> Simulated:
    """Runs ``jobs`` on ``workers`` as the executor does: whatever is ready, in plan order.

    Args:
        jobs: what is to do.
        waits: the keys that each follows; those outside of ``jobs`` count as done.
        seconds: cost of each job by key.
        workers: jobs at once.
    """
    place = {job.key: index for index, job in enumerate(jobs)}
    missing = [sum(need in place for need in waits[job.key]) for job in jobs]
    needed_by: list[list[int]] = [[] for _ in jobs]
    for index, job in enumerate(jobs):
        for need in waits[job.key]:
            if need in place:
                needed_by[place[need]].append(index)
    ready = [index for index, count in enumerate(missing) if not count]
    heapq.heapify(ready)
    running: list[tuple[float, int]] = []
    now = busy = 0.0
    while ready or running:
        while ready and len(running) < workers:
            index = heapq.heappop(ready)
            cost = seconds[jobs[index].key]
            busy += cost
            heapq.heappush(running, (now + cost, index))
        now, ended = heapq.heappop(running)
        for follower in needed_by[ended]:
            missing[follower] -= 1
            if not missing[follower]:
                heapq.heappush(ready, follower)
    return Simulated(now, busy, workers)


def critical_path(
    jobs: Sequence[Job], waits: Waits, seconds: Mapping[str, float]
) -> tuple[float, list[Job]]:
    """The longest chain: its seconds, and its jobs from first to last. Each of ``jobs`` comes
    after those it waits for."""
    ends: dict[str, float] = {}
    before: dict[str, Job | None] = {}
    by_key = {job.key: job for job in jobs}
    for job in jobs:
        last = max((n for n in waits[job.key] if n in ends), key=ends.__getitem__, default=None)
        ends[job.key] = seconds[job.key] + (ends[last] if last else 0.0)
        before[job.key] = by_key[last] if last else None
    if not ends:
        return 0.0, []
    at: Job | None = by_key[max(ends, key=ends.__getitem__)]
    path = []
    while at is not None:
        path.append(at)
        at = before[at.key]
    return max(ends.values()), path[::-1]
