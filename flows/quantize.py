"""The main flow: prepare, run the plan on Ray, publish to MLflow, report."""

from __future__ import annotations

import time
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from flows.connect import connected
from flows.execute import Counts, Results, execute
from flows.progress import Progress
from flows.request import Prepared, Request, prepare
from flows.tracking import Finished, Published, publish
from modcap.plan import CellPlan, Job, Kind, Plan
from modcap.recipe import CapacityKind, Method, Recipe
from modcap.results import canonical, digest
from tasks.store import Store

__all__ = ["quantize", "run_quantize"]

EXPERIMENT = "modcap"


_THREADS: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=64)


@flow(name="quantize", task_runner=_THREADS)  # type: ignore[arg-type]
def quantize(request: Request, compare: bool = True) -> dict[str, Any]:
    """Quantizes one checkpoint, registers the result and returns the report.

    Args:
        request: checkpoint, data and recipe.
        compare: also run rounding to nearest and the same recipe with k = 0, for the report.
    """
    with connected() as store, Progress() as progress:
        return run_quantize(request, compare, store, progress)


def run_quantize(
    request: Request, compare: bool, store: Store, progress: Progress
) -> dict[str, Any]:
    """The body of the flow, on services that are connected already."""
    start = time.monotonic()
    prepared = prepare(request)
    prepared.upload(store)
    variants = _variants(prepared) if compare else {"main": prepared}
    plan, results, counts = execute([p.cell for p in variants.values()], store, progress)
    cells = dict(zip(variants, plan.cells, strict=True))
    report = _report(prepared, cells["main"], results, counts)
    report["comparison"] = _comparison(cells, results)
    report["seconds"] = round(time.monotonic() - start, 1)
    artifact = results[cells["main"].assemble].tensors["artifact"].numpy().tobytes()
    name = f"artifacts/{report['artifact_digest']}.safetensors"
    report["artifact"] = store.put_file(name, artifact)
    finished = _finished(prepared, plan, cells, results, report, artifact)
    published = _publish(finished, prepared.request.model_name)
    report |= {
        "mlflow_run_id": published.run_id,
        "mlflow_run_url": published.run_url,
        "model_name": published.model_name,
        "model_version": published.model_version,
        "seconds": round(time.monotonic() - start, 1),
    }
    create_table_artifact(
        report["comparison"], key="comparison", description=cells["main"].cell.name
    )
    return report


def _variants(prepared: Prepared) -> dict[str, Prepared]:
    """The request beside what it has to beat: nearest rounding, and the same without joining."""
    recipe = prepared.request.recipe
    variants = {"main": prepared}
    if recipe.method is not Method.RTN:
        variants["rtn"] = prepared.with_recipe(rounding_to_nearest(recipe), "rtn")
        if recipe.k != 0 and not (recipe.capacity is CapacityKind.NONE and recipe.k is None):
            variants["k=0"] = prepared.with_recipe(unjoined(recipe), "k=0")
    return variants


def rounding_to_nearest(recipe: Recipe) -> Recipe:
    """The same bits by plain rounding."""
    return Recipe.make({"method": "rtn", "selection": "top-k", "groups": (), "k": 0}, recipe)


def unjoined(recipe: Recipe) -> Recipe:
    """The same recipe with no boundary selected."""
    return Recipe.make({"selection": "top-k", "groups": (), "k": 0}, recipe)


def _comparison(cells: dict[str, CellPlan], results: Results) -> list[dict[str, Any]]:
    main = cells["main"]
    rows: list[dict[str, Any]] = [
        {"variant": "full precision", "top1": results[main.evaluate_full].meta["top1"]}
    ]
    for name in ("rtn", "k=0", "main"):
        if name not in cells:
            continue
        cell = cells[name]
        found = results[cell.evaluate].meta
        recipe = cell.cell.recipe
        k = results[cell.select].meta["k"]
        label = name if name != "main" else f"{recipe.method.value} {recipe.selection.value} k={k}"
        rows.append(
            {
                "variant": f"{recipe.method.value} k=0" if name == "k=0" else label,
                "top1": found["top1"],
                "drop": round(rows[0]["top1"] - found["top1"], 4),
                "oscillation": found["oscillation"],
                "final_error": found["final_error"],
                "artifact_bytes": results[cell.assemble].meta["artifact_bytes"],
                "groups": len(cell.groups),
            }
        )
    return rows


def _report(prepared: Prepared, cell: CellPlan, results: Results, counts: Counts) -> dict[str, Any]:
    """The fields that DESIGN.md promises, and what else is known of the run."""
    evaluated, assembled = results[cell.evaluate].meta, results[cell.assemble].meta
    names = cell.cell.network.partition.names
    selected = results[cell.select].meta
    return {
        "checkpoint": prepared.request.checkpoint,
        "recipe": prepared.request.recipe.model_dump(mode="json"),
        "modules": list(names),
        "groups": [list(names[span.start : span.stop]) for span in cell.groups],
        "k": selected["k"],
        "fp_top1": results[cell.evaluate_full].meta["top1"],
        "top1": evaluated["top1"],
        "images": evaluated["images"],
        "oscillation": evaluated["oscillation"],
        "losses": evaluated["losses"],
        "jobs": {
            "planned": counts.planned,
            "executed": counts.executed,
            "reused": counts.reused,
        },
        "artifact_bytes": assembled["artifact_bytes"],
        "artifact_digest": assembled["artifact"],
        "fp_bytes": prepared.fp_bytes,
        "source": prepared.source,
    }


def _finished(
    prepared: Prepared,
    plan: Plan,
    cells: dict[str, CellPlan],
    results: Results,
    report: dict[str, Any],
    artifact: bytes,
) -> Finished:
    cell = cells["main"]
    jobs: dict[str, Job] = {job.key: job for job in plan.jobs}
    groups = [(_group_name(jobs[key]), results[key]) for key in cell.reconstructs]
    selected, evaluated = results[cell.select].meta, results[cell.evaluate].meta
    publication = {
        "assemble": cell.assemble,
        "evaluate": cell.evaluate,
        "recipe": cell.cell.recipe.digest,
        "source": prepared.source["checkpoint_digest"],
        "name": prepared.request.model_name,
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
        curves={name: result.tensors["curve"] for name, result in groups},
        errors={name: result.meta["error"] for name, result in groups},
        losses=tuple(evaluated["losses"]),
        oscillation=evaluated["oscillation"],
        baseline_losses={
            name: tuple(results[other.evaluate].meta["losses"])
            for name, other in cells.items()
            if name != "main"
        },
        fp_top1=report["fp_top1"],
        top1=report["top1"],
        artifact=artifact,
        artifact_digest=report["artifact_digest"],
        fp_bytes=prepared.fp_bytes,
        seconds=report["seconds"],
        report=report,
    )


def _group_name(job: Job) -> str:
    assert job.kind is Kind.RECONSTRUCT
    return job.label.split(" ", 2)[2]


@task(
    name="publish",
    task_run_name="publish {model_name}",
    persist_result=False,
    cache_policy=NO_CACHE,
)
def _publish(finished: Finished, model_name: str) -> Published:
    return publish(finished, experiment=EXPERIMENT, model_name=model_name)
