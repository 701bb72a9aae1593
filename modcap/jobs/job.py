"""Jobs: pure, content-addressed units of work, and those that a cell asks for.

What each kind computes is in :mod:`modcap.jobs.runners`; which jobs make a plan, in
:mod:`modcap.jobs.plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

from modcap.core.serialization import canonical, digest
from modcap.graph.network import Network
from modcap.jobs.cost_model import KEPT, evaluation_memory, reconstruction_memory
from modcap.ptq.selection import Span
from modcap.quantization.insert import bits_of
from modcap.quantization.layers import Bits
from modcap.recipe import Budget, CapacityKind, Device, Method, Recipe, Selection

__all__ = [
    "Cell",
    "Job",
    "Kind",
    "assemble_job",
    "capacity_jobs",
    "choose_job",
    "correct_job",
    "evaluate_full_job",
    "evaluate_job",
    "reconstruct_job",
    "select_job",
    "trial_job",
    "tune_job",
]

REVISION = 9
"""Of the algorithm: raise it when the same job would give other bytes than before."""


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
        activation_bytes: of calibration activations that it holds in memory; None is all.
    """

    kind: Kind
    params: dict[str, Any]
    inputs: dict[str, str]
    needs: tuple[str, ...] = ()
    label: str = field(default="", compare=False)
    threads: int = field(default=1, compare=False)
    memory: int = field(default=0, compare=False)
    gpus: float | None = field(default=None, compare=False)
    activation_bytes: int | None = field(default=None, compare=False)

    @property
    def device(self) -> str:
        """Where it computes: cpu or cuda."""
        device: str = self.params.get("device", "cpu")
        return device

    @property
    def activation_limit(self) -> float | None:
        """Bytes of a tensor of activations above which it lies in a file."""
        return None if self.activation_bytes is None else self.activation_bytes / KEPT

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
    """One quantization to make: a network, its images (by digest) and a recipe.

    ``pixels`` are the bytes of the images of evaluation.
    """

    network: Network
    calibration: str
    evaluation: str
    recipe: Recipe
    name: str = ""
    pixels: int = 0


def _arithmetic(cell: Cell) -> dict[str, Any]:
    """What decides the order of sums, and so the last bits of results, as parameters; the device
    where it is not the usual one."""
    threads, device = cell.recipe.threads, cell.recipe.device
    return {"threads": threads} | ({} if device is Device.CPU else {"device": device.value})


def _room(cell: Cell, memory: int) -> dict[str, Any]:
    """What a job asks of the node that it runs on."""
    recipe = cell.recipe
    return {
        "threads": recipe.threads,
        "memory": memory,
        "gpus": recipe.gpus,
        "activation_bytes": recipe.activation_bytes,
    }


def _memory(cell: Cell, span: Span, batch: int) -> int:
    """Of the optimisation of the modules ``span``."""
    recipe = cell.recipe
    bound = recipe.activation_bytes
    return reconstruction_memory(cell.network, span, recipe.calibration, batch, bound)


def _bits(cell: Cell) -> list[list[Bits]]:
    r = cell.recipe
    return bits_of(cell.network.partition, r.w_bits, r.a_bits, r.edge_bits)


def capacity_jobs(cell: Cell) -> list[Job]:
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
            params |= _arithmetic(cell)
            inputs = inputs | {"calibration": cell.calibration}
            images = max(recipe.capacity_images, recipe.optimiser.batch_size)
            memory = reconstruction_memory(cell.network, Span(index, index + 1), images, 0)
            room = _room(cell, memory)
        jobs.append(Job(Kind.CAPACITY, params, inputs, label=f"capacity {name}", **room))
    return jobs


def select_job(cell: Cell, capacities: tuple[str, ...]) -> Job:
    recipe = cell.recipe
    params: dict[str, Any] = {"selection": recipe.selection.value, "k": recipe.k}
    if recipe.selection is Selection.EXPLICIT:
        params = {"selection": "explicit", "groups": recipe.groups}
    elif recipe.method is Method.RTN:
        params = {"selection": Selection.TOP_K.value, "k": 0}
    else:
        params["homogeneity"] = recipe.homogeneity.value
        params["capacity_scale"] = recipe.capacity_scale.value
        if recipe.selection is Selection.RANDOM:
            params["seed"] = recipe.seed
    inputs = {"network": cell.network.digest}
    return Job(Kind.SELECT, params, inputs, capacities, label=f"select {cell.name}")


def reconstruct_job(cell: Cell, span: Span, first: int, needs: tuple[str, ...]) -> Job:
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
    memory = _memory(cell, span, batch)
    params |= _arithmetic(cell)
    return Job(Kind.RECONSTRUCT, params, inputs, needs, label=label, **_room(cell, memory))


def correct_job(cell: Cell, needs: tuple[str, ...]) -> Job:
    return _whole_job(cell, Kind.CORRECT, {}, needs, evaluation_memory(cell.network))


def choose_job(
    cell: Cell, select: str, ways: Sequence[tuple[Sequence[Span], tuple[str, ...]]]
) -> Job:
    """``ways``: groups, and the jobs that say what became of every module. It needs the selection,
    and those of each way one after another."""
    candidates = [
        {"groups": [list(span) for span in groups], "states": len(states)}
        for groups, states in ways
    ]
    needs = (select, *(key for _, states in ways for key in states))
    memory = evaluation_memory(cell.network)
    return _whole_job(cell, Kind.CHOOSE, {"candidates": candidates}, needs, memory)


def tune_job(cell: Cell, needs: tuple[str, ...]) -> Job:
    return _tuning(cell, needs, cell.recipe.tuning_steps, f"tune {cell.name}")


def trial_job(cell: Cell, needs: tuple[str, ...], k: int) -> Job:
    """A short tuning, by which ``k`` is compared with others."""
    return _tuning(cell, needs, cell.recipe.trial_steps, f"try k={k} {cell.name}")


def _tuning(cell: Cell, needs: tuple[str, ...], steps: int, label: str) -> Job:
    recipe = cell.recipe
    batch, modules = recipe.optimiser.batch_size, len(cell.network.partition.modules)
    params: dict[str, Any] = {
        "steps": steps,
        "rate": recipe.tuning_rate,
        "rounding_rate": recipe.tuning_rounding_rate,
        "batch_size": batch,
        "seed": recipe.seed,
        "precision": recipe.optimiser.precision.value,
    }
    memory = _memory(cell, Span(0, modules), batch)
    return _whole_job(cell, Kind.TUNE, params, needs, memory, label)


def _whole_job(
    cell: Cell,
    kind: Kind,
    params: dict[str, Any],
    needs: tuple[str, ...],
    memory: int,
    label: str = "",
) -> Job:
    """A job over the whole quantized network and the calibration images."""
    common = {"bits": _bits(cell)} | _arithmetic(cell)
    inputs = {"network": cell.network.digest, "calibration": cell.calibration}
    label = label or f"{kind.value} {cell.name}"
    return Job(kind, params | common, inputs, needs, label=label, **_room(cell, memory))


def assemble_job(cell: Cell, needs: tuple[str, ...]) -> Job:
    params: dict[str, Any] = {"bits": _bits(cell)}
    inputs = {"network": cell.network.digest}
    return Job(Kind.ASSEMBLE, params, inputs, needs, label=f"assemble {cell.name}")


def evaluate_job(cell: Cell, assemble: str) -> Job:
    images = {"calibration": cell.calibration, "evaluation": cell.evaluation}
    inputs = {"network": cell.network.digest} | images
    params = {"of": "quantized"} | _arithmetic(cell)
    room = _room(cell, evaluation_memory(cell.network, cell.pixels))
    return Job(Kind.EVALUATE, params, inputs, (assemble,), f"evaluate {cell.name}", **room)


def evaluate_full_job(cell: Cell) -> Job:
    inputs = {"network": cell.network.digest, "evaluation": cell.evaluation}
    params = {"of": "full precision"} | _arithmetic(cell)
    room = _room(cell, evaluation_memory(cell.network, cell.pixels))
    return Job(Kind.EVALUATE, params, inputs, label="evaluate full precision", **room)
