"""The plan: a directed acyclic graph of pure, content-addressed jobs.

A single run, a sweep and a scheduled scan are all a list of cells. Planning is pure: it turns the
cells, and the results that are already known, into jobs. What depends on a selection that has not
run yet cannot be planned; the plan then says so (``open``) and is made again once it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property, partial
from typing import Any

from modcap.network import Network
from modcap.quantized import Bits, bits_of
from modcap.recipe import Budget, CapacityKind, Device, Method, Recipe, Schedule, Selection
from modcap.resources import evaluation_memory, footprints, reconstruction_memory
from modcap.results import Result, canonical, digest
from modcap.selection import Span
from modcap.waves import segments

__all__ = ["Cell", "CellPlan", "Job", "Kind", "Plan", "plan"]

REVISION = 5
"""Of the algorithm: raise it when the same job would give other bytes than before."""

_TUNING_COST = 0.5  # of a step of tuning, relative to a step of every module alone; at most


class Kind(str, Enum):
    """What a job computes."""

    CAPACITY = "capacity"
    SELECT = "select"
    RECONSTRUCT = "reconstruct"
    CORRECT = "correct"
    CHOOSE = "choose"
    TUNE = "tune"
    ASSEMBLE = "assemble"
    EVALUATE = "evaluate"


@dataclass(frozen=True)
class Job:
    """A pure unit of work; equal keys are equal work.

    Attributes:
        kind: what it computes.
        params: JSON that decides the result.
        inputs: role (network, calibration, evaluation) to digest.
        needs: keys of the jobs whose results it reads, in order.
        label: for people; not part of the key.
        threads: CPU threads it runs with; part of the key through ``params`` where it matters.
        memory: bytes that it needs at its peak, estimated; 0 where it needs little.
        gpus: share of a GPU that it asks for; None leaves that to its memory.
    """

    kind: Kind
    params: dict[str, Any]
    inputs: dict[str, str]
    needs: tuple[str, ...] = ()
    label: str = field(default="", compare=False)
    threads: int = field(default=1, compare=False)
    memory: int = field(default=0, compare=False)
    gpus: float | None = field(default=None, compare=False)

    @property
    def device(self) -> str:
        """Where it computes: cpu or cuda."""
        device: str = self.params.get("device", "cpu")
        return device

    @property
    def small(self) -> bool:
        """Whether it takes milliseconds, so that many may go to a worker at once."""
        free = self.params.get("measure") == CapacityKind.DATA_FREE.value
        return self.kind is Kind.SELECT or free

    @property
    def steps(self) -> int:
        """Optimisation steps that it takes."""
        settings: dict[str, Any] = self.params.get("optimiser", {})
        return int(settings.get("iterations", self.params.get("steps", 0)))

    @cached_property
    def key(self) -> str:
        """sha256 of kind, revision, parameters, inputs and the keys it needs."""
        identity = {
            "kind": self.kind.value,
            "revision": REVISION,
            "params": self.params,
            "inputs": self.inputs,
            "needs": list(self.needs),
        }
        return digest(canonical(identity))


@dataclass(frozen=True)
class Cell:
    """One quantization to make: a network, its images (by digest) and a recipe."""

    network: Network
    calibration: str
    evaluation: str
    recipe: Recipe
    name: str = ""


@dataclass(frozen=True)
class CellPlan:
    """The jobs of one cell by role; empty where the selection is not known yet.

    Attributes:
        select: says which boundaries are joined; where several k are compared, the job that
            chooses one, and its meta says what that of a selection does.
        reconstructs: of the groups that were chosen.
        corrects: of every k that is compared.
    """

    cell: Cell
    capacities: tuple[str, ...]
    select: str
    groups: tuple[Span, ...] = ()
    reconstructs: tuple[str, ...] = ()
    corrects: tuple[str, ...] = ()
    tune: str = ""
    assemble: str = ""
    evaluate: str = ""
    evaluate_full: str = ""

    @property
    def finish(self) -> tuple[str, ...]:
        """What follows the reconstructions: corrections and tuning, where asked for."""
        return tuple(key for key in (*self.corrects, self.tune) if key)


@dataclass(frozen=True)
class Plan:
    """Unique jobs in an order in which each comes after those it needs."""

    jobs: tuple[Job, ...]
    cells: tuple[CellPlan, ...]
    open: bool

    def reconstructions(self, cell: CellPlan) -> set[str]:
        """Every reconstruct job that ``cell`` needs: groups of every k that is compared, and what
        leads to their inputs."""
        by_key = {job.key: job for job in self.jobs}
        found: set[str] = set()
        ahead = [key for key in (cell.select, cell.assemble) if key]
        while ahead:
            key = ahead.pop()
            if key not in found:
                found.add(key)
                ahead += by_key[key].needs
        return {key for key in found if by_key[key].kind is Kind.RECONSTRUCT}


def plan(cells: Iterable[Cell], known: Callable[[str], Result | None]) -> Plan:
    """Plans as far as the known results reach.

    Args:
        cells: what to quantize.
        known: the result of a key, or None; asked for selections only.
    """
    jobs: dict[str, Job] = {}
    planned = tuple(_plan_cell(cell, partial(_put, jobs), known) for cell in cells)
    return Plan(tuple(jobs.values()), planned, open=any(not c.assemble for c in planned))


def _put(jobs: dict[str, Job], job: Job) -> str:
    return jobs.setdefault(job.key, job).key


def _plan_cell(
    cell: Cell, add: Callable[[Job], str], known: Callable[[str], Result | None]
) -> CellPlan:
    capacities = tuple(add(job) for job in _capacity_jobs(cell))
    select = add(_select_job(cell, capacities))
    selected = known(select)
    if selected is None:
        return CellPlan(cell, capacities, select)
    full = add(_evaluate_full_job(cell))  # from here on: nothing waits for it
    ways = _ways(cell, selected, add)
    way = ways[0]
    corrects = tuple(way.correct for way in ways if way.correct)
    if len(ways) > 1:
        select = add(_choose_job(cell, select, ways))
        chosen = known(select)
        if chosen is None:
            return CellPlan(cell, capacities, select, corrects=corrects, evaluate_full=full)
        way = ways[chosen.meta["chosen"]]
    states = way.states
    tune = ""
    if cell.recipe.tuning_steps:
        tune = add(_tune_job(cell, states))
        states = (tune,)
    inputs = {"network": cell.network.digest}
    images = {"calibration": cell.calibration, "evaluation": cell.evaluation}
    params: dict[str, Any] = {"bits": _bits(cell)}
    assemble = add(Job(Kind.ASSEMBLE, params, inputs, states, label=f"assemble {cell.name}"))
    evaluate = add(
        Job(
            Kind.EVALUATE,
            {"of": "quantized"} | _device(cell),
            inputs | images,
            (assemble,),
            label=f"evaluate {cell.name}",
            **_room(cell, evaluation_memory(cell.network)),
        )
    )
    return CellPlan(
        cell,
        capacities,
        select,
        way.groups,
        way.reconstructs,
        corrects,
        tune,
        assemble,
        evaluate,
        full,
    )


@dataclass(frozen=True)
class _Way:
    """One way to group the modules of a cell, reconstructed and, where asked for, corrected."""

    groups: tuple[Span, ...]
    reconstructs: tuple[str, ...]
    correct: str

    @property
    def states(self) -> tuple[str, ...]:
        """The jobs that say what became of every module."""
        return (self.correct,) if self.correct else self.reconstructs


def _ways(cell: Cell, selected: Result, add: Callable[[Job], str]) -> list[_Way]:
    """The groupings to compare: the first one, and all others that the recipe's share of work
    beyond that still pays for."""
    jobs: dict[str, Job] = {}
    ways: list[_Way] = []
    left = math.inf
    for candidate in selected.meta.get("candidates", [selected.meta["groups"]]):
        new: dict[str, Job] = {}
        way = _way(cell, candidate, partial(_put, new))
        work = sum(_work(cell, job) for key, job in new.items() if key not in jobs)
        if work > left:
            continue
        if not ways:
            tuning = cell.recipe.tuning_steps * sum(m.step_cost for m in footprints(cell.network))
            left = cell.recipe.k_search * (work + _TUNING_COST * tuning)
        else:
            left -= work
        ways.append(way)
        jobs |= new
    for job in jobs.values():
        add(job)
    return ways


def _way(cell: Cell, candidate: Sequence[Sequence[int]], add: Callable[[Job], str]) -> _Way:
    groups = tuple(Span(*span) for span in candidate)
    reconstructs = _add_groups(cell, groups, add)
    correct = add(_correct_job(cell, reconstructs)) if cell.recipe.corrects else ""
    return _Way(groups, reconstructs, correct)


def _work(cell: Cell, job: Job) -> float:
    """Of the optimisation that ``job`` does, in units of a module's ``step_cost``."""
    if job.kind is not Kind.RECONSTRUCT:
        return 0.0
    span = slice(job.params["start"], job.params["stop"])
    return job.steps * sum(module.step_cost for module in footprints(cell.network)[span])


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
            alone[first, index] = add(_reconstruct_job(cell, span, first, needs))
        return alone[first, index]

    keys: list[str] = []
    for span in groups:
        first = _first(cell, span.start)
        if own and first == 0:
            needs = tuple(keys)
        else:
            needs = tuple(module(first, before) for before in range(first, span.start))
        keys.append(add(_reconstruct_job(cell, span, first, needs)))
    return tuple(keys)


def _first(cell: Cell, start: int) -> int:
    """The first of the modules that the group from module ``start`` sees quantized."""
    recipe = cell.recipe
    if recipe.method is Method.RTN:
        return start
    if recipe.schedule is Schedule.SEQUENTIAL:
        return 0
    costs = [module.step_cost for module in footprints(cell.network)]
    return next(s.first for s in segments(costs, recipe.path_share) if start < s.stop)


def _device(cell: Cell) -> dict[str, str]:
    """The device as a parameter, where it is not the usual one: keys of the CPU stay."""
    device = cell.recipe.device
    return {} if device is Device.CPU else {"device": device.value}


def _room(cell: Cell, memory: int) -> dict[str, Any]:
    """What a job asks of the node that it runs on."""
    return {"threads": cell.recipe.threads, "memory": memory, "gpus": cell.recipe.gpus}


def _bits(cell: Cell) -> list[list[Bits]]:
    r = cell.recipe
    return bits_of(cell.network.partition, r.w_bits, r.a_bits, r.edge_bits)


def _capacity_jobs(cell: Cell) -> list[Job]:
    recipe, names = cell.recipe, cell.network.partition.names
    if recipe.capacity is CapacityKind.NONE or recipe.method is Method.RTN:
        return []
    bits = _bits(cell)
    inputs = {"network": cell.network.digest}
    jobs = []
    for index, name in enumerate(names):
        params: dict[str, Any] = {"measure": recipe.capacity.value, "module": index}
        room: dict[str, Any] = {}
        if recipe.capacity is CapacityKind.DATA_FREE:
            params |= {"bits": bits[index], "alpha": recipe.stride_coefficient}
        else:
            params |= {
                "bits": bits[: index + 1],
                "images": recipe.capacity_images,
                "p": recipe.scale_exponent,
            }
            params |= _device(cell)
            inputs = inputs | {"calibration": cell.calibration}
            images = max(recipe.capacity_images, recipe.optimiser.batch_size)
            memory = reconstruction_memory(cell.network, Span(index, index + 1), images, 0)
            room = _room(cell, memory)
        jobs.append(Job(Kind.CAPACITY, params, inputs, label=f"capacity {name}", **room))
    return jobs


def _select_job(cell: Cell, capacities: tuple[str, ...]) -> Job:
    recipe = cell.recipe
    params: dict[str, Any] = {"selection": recipe.selection.value, "k": recipe.k}
    if recipe.selection is Selection.EXPLICIT:
        params = {"selection": "explicit", "groups": recipe.groups}
    elif recipe.method is Method.RTN:
        params["k"] = 0
    else:
        params["homogeneity"] = recipe.homogeneity.value
        params["capacity_scale"] = recipe.capacity_scale.value
        if recipe.selection is Selection.RANDOM:
            params["seed"] = recipe.seed
    inputs = {"network": cell.network.digest}
    return Job(Kind.SELECT, params, inputs, capacities, label=f"select {cell.name}")


def _reconstruct_job(cell: Cell, span: Span, first: int, needs: tuple[str, ...]) -> Job:
    """``needs`` hold the modules from ``first`` to the group, which it sees quantized."""
    recipe = cell.recipe
    params: dict[str, Any] = {
        "start": span.start,
        "stop": span.stop,
        "bits": _bits(cell)[span.start : span.stop],
        "method": recipe.method.value,
        "p": recipe.scale_exponent,
    }
    if recipe.method is not Method.RTN:
        steps = recipe.optimiser.iterations
        if recipe.iterations_per is Budget.MODULE:
            steps *= span.stop - span.start
        params |= {
            "optimiser": recipe.optimiser.model_dump(mode="json") | {"iterations": steps},
            "seed": recipe.seed,
            "threads": recipe.threads,
        }
    if first < span.start:
        params |= {"prefix": first, "prefix_bits": _bits(cell)[first : span.start]}
    names = cell.network.partition.names
    title = names[span.start]
    if span.stop - span.start > 1:
        title += (
            f"+{names[span.stop - 1]}"
            if span.stop - span.start == 2
            else "…" + names[span.stop - 1]
        )
    inputs = {"network": cell.network.digest, "calibration": cell.calibration}
    label = f"{recipe.method.value} {recipe.bits} {title}"
    batch = recipe.optimiser.batch_size if recipe.method is not Method.RTN else 0
    memory = reconstruction_memory(cell.network, span, recipe.calibration, batch)
    params |= _device(cell)
    return Job(Kind.RECONSTRUCT, params, inputs, needs, label=label, **_room(cell, memory))


def _correct_job(cell: Cell, needs: tuple[str, ...]) -> Job:
    return _whole_job(cell, Kind.CORRECT, {}, needs, evaluation_memory(cell.network))


def _choose_job(cell: Cell, select: str, ways: Sequence[_Way]) -> Job:
    """``needs``: the selection, and the states of each way one after another."""
    candidates = [
        {"groups": [list(span) for span in way.groups], "states": len(way.states)} for way in ways
    ]
    needs = (select, *(key for way in ways for key in way.states))
    memory = evaluation_memory(cell.network)
    return _whole_job(cell, Kind.CHOOSE, {"candidates": candidates}, needs, memory)


def _tune_job(cell: Cell, needs: tuple[str, ...]) -> Job:
    recipe = cell.recipe
    batch, modules = recipe.optimiser.batch_size, len(cell.network.partition.modules)
    params: dict[str, Any] = {
        "steps": recipe.tuning_steps,
        "rate": recipe.tuning_rate,
        "rounding_rate": recipe.tuning_rounding_rate,
        "batch_size": batch,
        "seed": recipe.seed,
    }
    memory = reconstruction_memory(cell.network, Span(0, modules), recipe.calibration, batch)
    return _whole_job(cell, Kind.TUNE, params, needs, memory)


def _whole_job(
    cell: Cell, kind: Kind, params: dict[str, Any], needs: tuple[str, ...], memory: int
) -> Job:
    """A job over the whole quantized network and the calibration images."""
    common = {"bits": _bits(cell), "threads": cell.recipe.threads} | _device(cell)
    inputs = {"network": cell.network.digest, "calibration": cell.calibration}
    label = f"{kind.value} {cell.name}"
    return Job(kind, params | common, inputs, needs, label=label, **_room(cell, memory))


def _evaluate_full_job(cell: Cell) -> Job:
    inputs = {"network": cell.network.digest, "evaluation": cell.evaluation}
    params = {"of": "full precision"} | _device(cell)
    room = _room(cell, evaluation_memory(cell.network))
    return Job(Kind.EVALUATE, params, inputs, label="evaluate full precision", **room)
