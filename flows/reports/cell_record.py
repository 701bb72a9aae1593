"""What is said of a finished cell: its report, and all that is worth logging."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from modcap.core.serialization import Result, canonical, digest
from modcap.data.doubts import doubt_of_accuracy
from modcap.export import EXPORTERS
from modcap.flows.execution.execute import Counts
from modcap.flows.execution.job_results import Results
from modcap.flows.reports.chosen_bits import allocation_of, layer_bits
from modcap.flows.reports.environments import environments_of
from modcap.flows.requests.request import Ready, say
from modcap.jobs.job import Job
from modcap.jobs.plan import CellPlan, Plan
from modcap.ptq.measured import TOP1, Scale
from modcap.ptq.selection import Span
from modcap.recipe import Recipe

__all__ = [
    "Exported",
    "Finished",
    "below_version",
    "details",
    "finished",
    "jobs_of",
    "report",
    "warnings_of",
]


@dataclass(frozen=True)
class Exported:
    """The artifact as a file of another format, and where it lies below its version."""

    format: str
    path: str
    data: bytes


@dataclass(frozen=True)
class Finished:
    """A finished cell: all that is worth logging.

    Attributes:
        scale: what it was measured in.
        full, value: the figure in full precision, and quantized.
    """

    key: str
    name: str
    recipe: Recipe
    source: Mapping[str, str]
    input_shape: tuple[int, int, int]
    modules: tuple[str, ...]
    groups: tuple[Span, ...]
    capacities: tuple[float, ...]
    differentials: tuple[float, ...]
    allowed: tuple[bool, ...]
    selected: tuple[bool, ...]
    curves: Mapping[str, Tensor]
    errors: Mapping[str, float]
    losses: tuple[float, ...]
    oscillation: float
    baseline_losses: Mapping[str, tuple[float, ...]]
    scale: Scale
    full: float
    value: float
    artifact: bytes
    artifact_digest: str
    fp_bytes: int
    seconds: float
    jobs: tuple[str, ...]
    network_digest: str
    report: Mapping[str, Any]
    exports: tuple[Exported, ...]
    images: Mapping[str, tuple[str, str]]  # calibration, evaluation: place and digest

    @property
    def classes(self) -> list[str]:
        """What outputs stand for, where images came with names."""
        return list(self.report.get("classes") or [])

    @property
    def warnings(self) -> list[str]:
        """What says that a result may be wrong."""
        return list(self.report.get("warnings") or [])


def report(prepared: Ready, cell: CellPlan, results: Results) -> dict[str, Any]:
    """The fields of a report that one cell decides (DESIGN.md, contracts)."""
    evaluated, assembled = results[cell.evaluate].meta, results[cell.assemble].meta
    names = cell.cell.modules
    scale = Scale.of(evaluated)
    full, value = scale.value(results[cell.evaluate_full].meta), scale.value(evaluated)
    return {
        "checkpoint": prepared.request.checkpoint,
        "name": cell.cell.name,
        "recipe": prepared.request.recipe.model_dump(mode="json"),
        "bits": prepared.request.recipe.bits_label,
        "layer_bits": layer_bits(cell.cell),
        "allocation": allocation_of(results[cell.allocate] if cell.allocate else None),
        "method": prepared.request.recipe.method.name,
        "modules": list(names),
        "groups": [list(names[span.start : span.stop]) for span in cell.groups],
        "k": results[cell.select].meta["k"],
        "k_asked": prepared.request.recipe.k_asked,
        "k_compared": results[cell.select].meta.get("compared", []),
        **scale.fields,
        **scale.figures(full, "fp_"),
        **scale.figures(value),
        "drop": scale.lost(full, value),
        "images": evaluated["images"],
        "measured": prepared.measured,
        "evaluation_digest": cell.cell.evaluation,
        "oscillation": evaluated["oscillation"],
        "losses": evaluated["losses"],
        "final_error": evaluated["final_error"],
        "agreement": _agreement(scale, results[cell.evaluate_full], results[cell.evaluate]),
        "artifact_bytes": assembled["artifact_bytes"],
        "artifact_digest": assembled["artifact"],
        "fp_bytes": prepared.fp_bytes,
        "exports": [_exported_row(results[key].meta) for key in cell.exports],
        "environments": environments_of(cell, results),
        "source": prepared.source,
        "outputs": evaluated.get("outputs", []),
        "classes": None if prepared.classes is None else list(prepared.classes),
        "warnings": list(warnings_of(prepared, results[cell.evaluate_full].meta)),
    }


def warnings_of(prepared: Ready, full: Mapping[str, Any]) -> Iterator[str]:
    """What says that the result may be wrong; the worst first."""
    if prepared.chance is not None and TOP1 in full:
        guesses = doubt_of_accuracy(full["top1"], full["images"], prepared.chance)
        if guesses is not None:
            say(guesses)
            yield guesses
    yield from prepared.warnings


def _agreement(scale: Scale, full: Result, quantized: Result) -> float | None:
    """Percentage of test images that both take for the same class; None where that was not
    measured, or the store holds evaluations of a version that did not keep what was predicted."""
    if scale.metric == "agreement":
        return scale.value(quantized.meta)
    both = [result.tensors.get("predictions") for result in (full, quantized)]
    if both[0] is None or both[1] is None:
        return None
    return 100 * int((both[0] == both[1]).sum()) / len(both[0])


def details(prepared: Ready, cell: CellPlan, plan: Plan, results: Results) -> dict[str, Any]:
    """What the page of one run shows beside :func:`report`; too much for each cell of a sweep."""
    selected, evaluated = results[cell.select].meta, results[cell.evaluate].meta
    needed = plan.needed(cell) | {cell.assemble}
    return {
        "request": prepared.request.model_dump(mode="json", exclude={"recipe", "checkpoint"}),
        "capacities": selected["capacities"],
        "differentials": selected["differentials"],
        "homogeneous": selected["allowed"],
        "selected": selected["selected"],
        "per_class": _per_class(results[cell.evaluate_full].meta, evaluated),
        "activations": evaluated.get("activations", {}),
        "job_times": [
            {"label": job.label, "kind": job.kind, "seconds": results[job.key].meta["seconds"]}
            for job in plan.jobs
            if job.key in needed
        ],
    }


def _per_class(full: Mapping[str, Any], quantized: Mapping[str, Any]) -> dict[str, Any] | None:
    """Counts for each class, where both evaluations have them."""
    if "class_hits" not in full or "class_hits" not in quantized:
        return None
    return {
        "images": full["class_images"],
        "fp_hits": full["class_hits"],
        "hits": quantized["class_hits"],
    }


def jobs_of(counts: Counts) -> dict[str, int]:
    """The counts of a report."""
    return {"planned": counts.planned, "executed": counts.executed, "reused": counts.reused}


def finished(
    prepared: Ready,
    cell: CellPlan,
    plan: Plan,
    results: Results,
    said: Mapping[str, Any],
    baselines: Mapping[str, CellPlan],
) -> Finished:
    """The cell as MLflow gets it.

    Args:
        prepared: the request.
        cell: its planned cell, all of whose jobs are done.
        plan: what it is part of.
        results: theirs.
        said: the report.
        baselines: cells whose losses are drawn beside this one's.
    """
    jobs = {job.key: job for job in plan.jobs if job.key in cell.reconstructs}
    optimised = {_group_name(jobs[key]): results[key] for key in cell.reconstructs}
    if cell.tune:
        optimised["tuning"] = results[cell.tune]
    selected, evaluated = results[cell.select].meta, results[cell.evaluate].meta
    publication = {
        "assemble": cell.assemble,
        "evaluate": cell.evaluate,
        "recipe": cell.cell.recipe.digest,
        "source": prepared.source["checkpoint_digest"],
        "name": prepared.request.model_name,
        **_published(cell.cell.exports),
    }
    return Finished(
        key=digest(canonical(publication)),
        name=cell.cell.name,
        recipe=cell.cell.recipe,
        source=prepared.source,
        input_shape=cell.cell.network.input_shape,
        modules=cell.cell.modules,
        groups=cell.groups,
        capacities=tuple(selected["capacities"]),
        differentials=tuple(selected["differentials"]),
        allowed=tuple(selected["allowed"]),
        selected=tuple(selected["selected"]),
        curves={name: result.tensors["curve"] for name, result in optimised.items()},
        errors={name: result.meta["error"] for name, result in optimised.items()},
        losses=tuple(evaluated["losses"]),
        oscillation=evaluated["oscillation"],
        baseline_losses={
            name: tuple(results[other.evaluate].meta["losses"]) for name, other in baselines.items()
        },
        scale=Scale.of(said),
        full=said["fp_value"],
        value=said["value"],
        artifact=results[cell.assemble].tensors["artifact"].numpy().tobytes(),
        artifact_digest=said["artifact_digest"],
        fp_bytes=prepared.fp_bytes,
        seconds=sum(
            results[key].meta["seconds"] for key in (*plan.reconstructions(cell), *cell.finish)
        ),
        jobs=(cell.select, cell.assemble, cell.evaluate, cell.evaluate_full, *cell.exports),
        network_digest=cell.cell.network.digest,
        report=said,
        images={
            "calibration": (str(prepared.request.data), cell.cell.calibration),
            "evaluation": (
                prepared.request.eval_data or str(prepared.request.data),
                cell.cell.evaluation,
            ),
        },
        exports=tuple(_exported(results[key]) for key in cell.exports),
    )


_OF_JOBS = (
    "kind",
    "needs",
    "inputs",
    "seconds",
    "label",
    "attempt",
    "environment",
)  # in every meta


def _exported_row(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a report says of an export: format, bytes, agreement with the artifact, …"""
    said = {name: value for name, value in meta.items() if name not in _OF_JOBS}
    return said | {"path": below_version(meta["format"])}


def _exported(result: Result) -> Exported:
    name = result.meta["format"]
    return Exported(name, below_version(name), result.tensors["export"].numpy().tobytes())


def below_version(name: str) -> str:
    """Where the export of this format lies below its version."""
    return f"{name}/network{EXPORTERS[name].suffix}"


def _published(formats: tuple[str, ...]) -> dict[str, Any]:
    """What exports add to the identity of a publication."""
    others = [name for name in formats if name != "onnx"]
    return ({"onnx": True} if "onnx" in formats else {}) | ({"exports": others} if others else {})


def _group_name(job: Job) -> str:
    return job.label.split(" ", 2)[2]
