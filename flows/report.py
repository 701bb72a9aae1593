"""What is said of a finished cell: its report, and all that is worth logging."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows.execute import Counts
from flows.job_results import Results
from flows.request import Prepared
from flows.tracking import Finished
from modcap.jobs import Job, Kind
from modcap.plan import CellPlan, Plan
from modcap.results import canonical, digest

__all__ = ["finished", "jobs_of", "report"]


def report(prepared: Prepared, cell: CellPlan, results: Results) -> dict[str, Any]:
    """The fields of a report that one cell decides (DESIGN.md, contracts)."""
    evaluated, assembled = results[cell.evaluate].meta, results[cell.assemble].meta
    names = cell.cell.network.partition.names
    return {
        "checkpoint": prepared.request.checkpoint,
        "recipe": prepared.request.recipe.model_dump(mode="json"),
        "bits": prepared.request.recipe.bits,
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
    }


def jobs_of(counts: Counts) -> dict[str, int]:
    """The counts of a report."""
    return {"planned": counts.planned, "executed": counts.executed, "reused": counts.reused}


def finished(
    prepared: Prepared,
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
        **({"onnx": True} if prepared.request.onnx else {}),
    }
    return Finished(
        key=digest(canonical(publication)),
        name=cell.cell.name,
        recipe=cell.cell.recipe,
        source=prepared.source,
        input_shape=cell.cell.network.input_shape,
        modules=cell.cell.network.partition.names,
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
        onnx=prepared.request.onnx,
    )


def _group_name(job: Job) -> str:
    assert job.kind is Kind.RECONSTRUCT
    return job.label.split(" ", 2)[2]
