"""What is said of a finished cell: its report, and all that is worth logging."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from modcap.core.serialization import canonical, digest
from modcap.flows.execution.execute import Counts
from modcap.flows.execution.job_results import Results
from modcap.flows.requests.request import Ready
from modcap.jobs.job import Job
from modcap.jobs.plan import CellPlan, Plan
from modcap.ptq.selection import Span
from modcap.recipe import Recipe

__all__ = ["Finished", "finished", "jobs_of", "report"]


@dataclass(frozen=True)
class Finished:
    """A finished cell: all that is worth logging."""

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
    fp_top1: float
    top1: float
    artifact: bytes
    artifact_digest: str
    fp_bytes: int
    seconds: float
    jobs: tuple[str, ...]
    network_digest: str
    report: Mapping[str, Any]
    exports: tuple[str, ...]

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
    return {
        "checkpoint": prepared.request.checkpoint,
        "recipe": prepared.request.recipe.model_dump(mode="json"),
        "bits": prepared.request.recipe.bits,
        "method": prepared.request.recipe.method.name,
        "modules": list(names),
        "groups": [list(names[span.start : span.stop]) for span in cell.groups],
        "k": results[cell.select].meta["k"],
        "k_asked": prepared.request.recipe.k_asked,
        "k_compared": results[cell.select].meta.get("compared", []),
        "fp_top1": results[cell.evaluate_full].meta["top1"],
        "top1": evaluated["top1"],
        "images": evaluated["images"],
        "oscillation": evaluated["oscillation"],
        "losses": evaluated["losses"],
        "final_error": evaluated["final_error"],
        "artifact_bytes": assembled["artifact_bytes"],
        "artifact_digest": assembled["artifact"],
        "fp_bytes": prepared.fp_bytes,
        "source": prepared.source,
        "classes": None if prepared.classes is None else list(prepared.classes),
        "warnings": list(prepared.warnings),
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
        **_published(prepared.request.formats),
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
        fp_top1=said["fp_top1"],
        top1=said["top1"],
        artifact=results[cell.assemble].tensors["artifact"].numpy().tobytes(),
        artifact_digest=said["artifact_digest"],
        fp_bytes=prepared.fp_bytes,
        seconds=sum(
            results[key].meta["seconds"] for key in (*plan.reconstructions(cell), *cell.finish)
        ),
        jobs=(cell.select, cell.assemble, cell.evaluate, cell.evaluate_full),
        network_digest=cell.cell.network.digest,
        report=said,
        exports=prepared.request.formats,
    )


def _published(formats: tuple[str, ...]) -> dict[str, Any]:
    """What exports add to the identity of a publication."""
    others = [name for name in formats if name != "onnx"]
    return ({"onnx": True} if "onnx" in formats else {}) | ({"exports": others} if others else {})


def _group_name(job: Job) -> str:
    return job.label.split(" ", 2)[2]
