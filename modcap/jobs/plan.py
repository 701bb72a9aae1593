"""The plan: a directed acyclic graph of pure, content-addressed jobs.

A single run, a sweep and a scheduled scan are all a list of cells. Planning is pure: it turns the
cells, and the results that are already known, into jobs. What depends on a selection that has not
run yet cannot be planned; the plan then says so (``open``) and is made again once it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from modcap.core.serialization import Result
from modcap.jobs.cost_model import footprints
from modcap.jobs.job import Cell, Job
from modcap.jobs.kinds.allocate import allocate_job, chosen_bits
from modcap.jobs.kinds.assemble import assemble_job
from modcap.jobs.kinds.capacity import capacity_jobs
from modcap.jobs.kinds.evaluate import evaluate_full_job, evaluate_job
from modcap.jobs.kinds.export import export_job
from modcap.jobs.kinds.reconstruct import Reconstruct, reconstruct_job
from modcap.jobs.kinds.select import select_job
from modcap.jobs.kinds.sensitivity import sensitivity_jobs
from modcap.jobs.kinds.whole import (
    TUNING_COST,
    Choose,
    choose_job,
    correct_job,
    trial_job,
    tune_job,
)
from modcap.jobs.pass_sizes import batch_size
from modcap.jobs.waves import segments
from modcap.ptq.selection import Span
from modcap.recipe import Schedule

__all__ = ["CellPlan", "Plan", "plan"]


@dataclass(frozen=True)
class CellPlan:
    """The jobs of one cell by role; empty where the selection is not known yet.

    Attributes:
        cell: with the bits that were chosen, where they are.
        allocate: chooses the bits of layers, where a job does.
        sensitivities: that this goes by.
        select: says which boundaries are joined; where several k are compared, the job that
            chooses one, and its meta says what that of a selection does.
        reconstructs: of the groups that were chosen.
        corrects: of every k that is compared.
        trials: the short tuning of every k that is compared, where a long one follows.
    """

    cell: Cell
    capacities: tuple[str, ...] = ()
    select: str = ""
    groups: tuple[Span, ...] = ()
    reconstructs: tuple[str, ...] = ()
    corrects: tuple[str, ...] = ()
    trials: tuple[str, ...] = ()
    tune: str = ""
    assemble: str = ""
    evaluate: str = ""
    evaluate_full: str = ""
    exports: tuple[str, ...] = ()
    allocate: str = ""
    sensitivities: tuple[str, ...] = ()

    @property
    def finish(self) -> tuple[str, ...]:
        """What follows the reconstructions: corrections and tuning, where asked for."""
        return tuple(key for key in (*self.corrects, *self.trials, self.tune) if key)


@dataclass(frozen=True)
class Plan:
    """Unique jobs in an order in which each comes after those it needs."""

    jobs: tuple[Job, ...]
    cells: tuple[CellPlan, ...]
    open: bool

    def needed(self, cell: CellPlan) -> set[str]:
        """Every job that ``cell`` needs, those included that only choose its bits or its k."""
        found: set[str] = set()
        ends = (
            cell.allocate,
            cell.select,
            cell.evaluate,
            cell.evaluate_full,
            *cell.finish,
            *cell.exports,
        )
        ahead = [key for key in ends if key]
        while ahead:
            key = ahead.pop()
            if key not in found:
                found.add(key)
                ahead += self._by_key[key].needs
        return found

    def reconstructions(self, cell: CellPlan) -> set[str]:
        """Every reconstruct job that ``cell`` needs: groups of every k that is compared, and what
        leads to their inputs."""
        by_key = self._by_key
        return {key for key in self.needed(cell) if isinstance(by_key[key].work, Reconstruct)}

    @cached_property
    def waits(self) -> dict[str, tuple[str, ...]]:
        """The jobs that each follows, by key: those it reads, and the one that led to it, which
        is the choice of bits for capacities and the selection, the selection for reconstructions,
        and for what comes after them the choice of k. A job that several cells share is led to by
        the first of them."""
        led: dict[str, tuple[str, ...]] = {}
        for cell in self.cells:
            if cell.allocate and cell.select:
                decision = self._by_key[cell.select]
                first = decision.needs[0] if isinstance(decision.work, Choose) else decision.key
                for key in (*cell.capacities, first):
                    led.setdefault(key, (cell.allocate,))
            if not cell.assemble:
                continue
            decision = self._by_key[cell.select]
            select = decision.needs[0] if isinstance(decision.work, Choose) else decision.key
            for key in self.reconstructions(cell):
                led.setdefault(key, (cell.allocate, select) if cell.allocate else (select,))
            led.setdefault(cell.tune or cell.assemble, (decision.key,))
        return {job.key: job.needs + led.get(job.key, ()) for job in self.jobs}

    @cached_property
    def _by_key(self) -> dict[str, Job]:
        return {job.key: job for job in self.jobs}


def plan(cells: Iterable[Cell], known: Callable[[str], Result | None]) -> Plan:
    """Plans as far as the known results reach.

    Args:
        cells: what to quantize.
        known: the result of a key, or None; asked for choices of bits, and selections, only.
    """
    jobs: dict[str, Job] = {}
    planned = tuple(_plan_cell(cell, partial(_put, jobs), known) for cell in cells)
    return Plan(tuple(jobs.values()), planned, open=any(not c.assemble for c in planned))


def _put(jobs: dict[str, Job], job: Job) -> str:
    return jobs.setdefault(job.key, job).key


def _plan_cell(
    cell: Cell, add: Callable[[Job], str], known: Callable[[str], Result | None]
) -> CellPlan:
    start = _allocated(cell, add, known)
    cell = start.cell
    if start.allocate and cell.chosen is None:
        return start
    capacities = tuple(add(job) for job in capacity_jobs(cell))
    select = add(select_job(cell, capacities))
    start = replace(start, capacities=capacities, select=select)
    selected = known(select)
    if selected is None:
        return start
    full = add(evaluate_full_job(cell))  # from here on: nothing waits for it
    groupings = _groupings(cell, selected, add)
    grouping = groupings[0]
    corrects = tuple(grouping.correct for grouping in groupings if grouping.correct)
    found = replace(start, corrects=corrects, evaluate_full=full)
    if len(groupings) > 1:
        found = _compare(found, groupings, add)
        chosen = known(found.select)
        if chosen is None:
            return found
        grouping = groupings[chosen.meta["chosen"]]
    states = grouping.states
    tune = ""
    if cell.recipe.tuning_steps:
        tune = add(tune_job(cell, states))
        states = (tune,)
    assemble = add(assemble_job(cell, states))
    return replace(
        found,
        groups=grouping.groups,
        reconstructs=grouping.reconstructs,
        tune=tune,
        assemble=assemble,
        evaluate=add(evaluate_job(cell, assemble)),
        exports=tuple(add(export_job(cell, assemble, name)) for name in cell.exports),
    )


def _allocated(
    cell: Cell, add: Callable[[Job], str], known: Callable[[str], Result | None]
) -> CellPlan:
    """The cell, with the bits that a job chose, where one does and has done so."""
    if not cell.recipe.chooses_bits:
        return CellPlan(cell)
    sensitivities = tuple(add(job) for job in sensitivity_jobs(cell))
    allocate = add(allocate_job(cell, sensitivities))
    found = known(allocate)
    if found is not None:
        cell = replace(cell, chosen=chosen_bits(found))
    return CellPlan(cell, allocate=allocate, sensitivities=sensitivities)


def _compare(
    found: CellPlan, groupings: Sequence[_Grouping], add: Callable[[Job], str]
) -> CellPlan:
    """Adds the job that chooses among ``groupings``; where a tuning follows, after a short one of
    each, since errors before it say little of what it reaches."""
    cell, ends = found.cell, [grouping.states for grouping in groupings]
    trials: tuple[str, ...] = ()
    if cell.recipe.trial_steps:
        modules = len(cell.modules)
        trials = tuple(
            add(trial_job(cell, grouping.states, modules - len(grouping.groups)))
            for grouping in groupings
        )
        ends = [(trial,) for trial in trials]
    compared = [(grouping.groups, end) for grouping, end in zip(groupings, ends, strict=True)]
    choose = add(choose_job(cell, found.select, compared))
    return replace(found, select=choose, trials=trials)


@dataclass(frozen=True)
class _Grouping:
    """One way to group the modules of a cell, reconstructed and, where asked for, corrected."""

    groups: tuple[Span, ...]
    reconstructs: tuple[str, ...]
    correct: str

    @property
    def states(self) -> tuple[str, ...]:
        """The jobs that say what became of every module."""
        return (self.correct,) if self.correct else self.reconstructs


def _groupings(cell: Cell, selected: Result, add: Callable[[Job], str]) -> list[_Grouping]:
    """The groupings to compare: the first one, and those after it as long as the recipe's share of
    work beyond that pays for them, short tunings of all included."""
    jobs: dict[str, Job] = {}
    groupings: list[_Grouping] = []
    step = TUNING_COST * sum(module.step_cost for module in footprints(cell.network))
    trial = cell.recipe.trial_steps * step
    left = math.inf
    for candidate in selected.meta.get("candidates", [selected.meta["groups"]]):
        new: dict[str, Job] = {}
        grouping = _grouping(cell, candidate, partial(_put, new))
        work = sum(_work(cell, job) for key, job in new.items() if key not in jobs)
        if work + trial > left:
            break
        if not groupings:
            left = cell.recipe.k_search * (work + cell.recipe.tuning_steps * step) - trial
        else:
            left -= work + trial
        groupings.append(grouping)
        jobs |= new
    for job in jobs.values():
        add(job)
    return groupings


def _grouping(
    cell: Cell, candidate: Sequence[Sequence[int]], add: Callable[[Job], str]
) -> _Grouping:
    groups = tuple(Span(*span) for span in candidate)
    reconstructs = _add_groups(cell, groups, add)
    correct = add(correct_job(cell, reconstructs)) if cell.recipe.corrects else ""
    return _Grouping(groups, reconstructs, correct)


def _work(cell: Cell, job: Job) -> float:
    """Of the optimisation that ``job`` does, in units of a module's ``step_cost``."""
    if not isinstance(job.work, Reconstruct):
        return 0.0
    span = Span(job.work.start, job.work.stop)
    return job.work.steps * sum(_step_costs(cell, span))


def _step_costs(cell: Cell, group: Span | None = None) -> list[float]:
    """Of each module of ``group``, or of each module by itself."""
    modules, usual = footprints(cell.network), cell.recipe.optimiser.batch_size
    spans = [Span(i, i + 1) for i in range(len(modules))]
    if group is not None:
        spans = spans[group.start : group.stop]
    return [
        modules[one.start].step_cost_of(batch_size(cell.network, group or one, cell.recipe) / usual)
        for one in spans
    ]


def _add_groups(cell: Cell, groups: Sequence[Span], add: Callable[[Job], str]) -> tuple[str, ...]:
    """Adds the reconstruct jobs of ``groups``, and of the modules that only lead to their inputs.

    A group sees the modules from ``first`` on as they were reconstructed, and full precision before
    them. Those are the groups of this cell, or, where cells of every k shall share them, the
    modules one by one.
    """
    recipe = cell.recipe
    own = recipe.schedule is Schedule.SEQUENTIAL and not recipe.shared_prefix
    alone: dict[tuple[int, int], str] = {}  # (first, module) -> key

    def module(first: int, index: int) -> str:
        if (first, index) not in alone:
            needs = tuple(module(first, before) for before in range(first, index))
            span = Span(index, index + 1)
            alone[first, index] = add(reconstruct_job(cell, span, first, needs))
        return alone[first, index]

    keys: list[str] = []
    for span in groups:
        first = _first(cell, span.start)
        if own and first == 0:
            needs = tuple(keys)
        else:
            needs = tuple(module(first, before) for before in range(first, span.start))
        keys.append(add(reconstruct_job(cell, span, first, needs)))
    return tuple(keys)


def _first(cell: Cell, start: int) -> int:
    """The first of the modules that the group from module ``start`` sees quantized."""
    recipe = cell.recipe
    if not recipe.method.learns:
        return start
    if recipe.schedule is Schedule.SEQUENTIAL:
        return 0
    costs = _step_costs(cell)
    return next(s.first for s in segments(costs, recipe.path_share) if start < s.stop)
