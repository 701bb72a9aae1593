"""How long a run still takes: jobs in the units of the cost model, calibrated by those that ended.

A step of tuning takes as long as steps of many modules, and an evaluation takes no step at all: so
counting steps, or jobs, is off by a factor. Costs come from shapes; what a unit of cost takes here
and now, other work on this machine included, is what finished jobs took.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from modcap.jobs.cost_model import ModuleTimes, times_of
from modcap.jobs.job import Cell, Job
from modcap.jobs.kinds.evaluate import evaluate_job
from modcap.jobs.kinds.whole import tune_job
from modcap.jobs.plan import CellPlan, Plan
from modcap.jobs.simulate import simulate

__all__ = ["TimeLeft"]


class TimeLeft:
    """Told of what is planned and what ends; says how many seconds are left, if it can."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start: float | None = None
        self._jobs: dict[str, Job] = {}  # to do
        self._waits: Mapping[str, tuple[str, ...]] = {}
        self._costs: dict[str, float] = {}
        self._times: dict[str, ModuleTimes] = {}  # by network
        self._taken: defaultdict[str, float] = defaultdict(float)  # seconds, by kind
        self._worth: defaultdict[str, float] = defaultdict(float)  # their cost
        self._busy = 0.0

    def planned(self, plan: Plan, done: set[str]) -> None:
        """These jobs are to do, but for those that are ``done``."""
        for cell in plan.cells:
            self._times.setdefault(cell.cell.network.digest, times_of(cell.cell))
        todo = [job for job in plan.jobs if job.key not in done]
        later = [(job, after) for cell in plan.cells for job, after in _later(cell)]
        self._jobs = {job.key: job for job in (*todo, *(job for job, _ in later))}
        self._waits = {**plan.waits, **{job.key: after for job, after in later}}
        self._costs |= {key: self._cost(job) for key, job in self._jobs.items()}
        if self._start is None:
            self._start = self._clock()

    def finished(self, job: Job, seconds: float) -> None:
        """``job`` is done, and took so long on its worker."""
        self._jobs.pop(job.key, None)
        self._busy += seconds
        if not job.work.small:
            self._taken[job.kind] += seconds
            self._worth[job.kind] += self._costs.get(job.key, 0.0)

    def seconds(self, under_way: Mapping[str, float]) -> float | None:
        """Seconds left; None before anything is known. ``under_way`` gives shares done by key."""
        worth = sum(self._worth.values())
        if not worth or self._start is None or not self._jobs:
            return None
        usual = sum(self._taken.values()) / worth
        costs = {
            key: self._costs[key] * (1 - under_way.get(key, 0.0)) * self._unit(job.kind, usual)
            for key, job in self._jobs.items()
        }
        return simulate(list(self._jobs.values()), self._waits, costs, self._workers()).makespan

    def _unit(self, kind: str, usual: float) -> float:
        """Seconds of a unit of cost, in jobs of this kind where one ended."""
        return self._taken[kind] / self._worth[kind] if self._worth[kind] else usual

    def _workers(self) -> int:
        """How many jobs ran at once, on average, since the first was planned."""
        assert self._start is not None
        elapsed = self._clock() - self._start
        return max(1, math.ceil(self._busy / elapsed - 0.25)) if elapsed > 0 else 1

    def _cost(self, job: Job) -> float:
        return job.work.seconds(self._times[job.inputs["network"]])


def _later(planned: CellPlan) -> Iterable[tuple[Job, tuple[str, ...]]]:
    """What follows the choice of k, where that is not made yet, and what it waits for."""
    if planned.assemble or not planned.evaluate_full:
        return
    cell: Cell = planned.cell
    ends = planned.trials or planned.corrects or (planned.select,)
    if cell.recipe.tuning_steps:
        tune = tune_job(cell, ends)
        yield tune, ends
        ends = (tune.key,)
    yield evaluate_job(cell, ends[0]), ends
