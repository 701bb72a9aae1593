"""The main flow: prepare, run the plan on Ray, publish to MLflow, report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from modcap.flows.execution.connect import connected
from modcap.flows.execution.execute import Results, execute
from modcap.flows.execution.prefect_page import shown_in_prefect
from modcap.flows.execution.progress import Progress
from modcap.flows.registry.opened_run import opened_run
from modcap.flows.registry.owner import check_owner
from modcap.flows.registry.publish import Registered, publish, publish_baseline
from modcap.flows.reports.cell_record import Finished, details, finished, jobs_of, report
from modcap.flows.reports.link import link_report
from modcap.flows.requests.asked import Request
from modcap.flows.requests.request import Prepared, prepare, say
from modcap.jobs.plan import CellPlan, Plan
from modcap.ptq.measured import Scale
from modcap.ptq.settings import RoundingStart
from modcap.recipe import CapacityKind, Recipe
from modcap.tasks.storage.store import Store
from modcap.tasks.workers.gpus import has_gpu
from modcap.tasks.workers.ray_resources import MOST_IN_FLIGHT

__all__ = ["quantize", "run_quantize"]

EXPERIMENT = "modcap"
THREADS: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=MOST_IN_FLIGHT)


@flow(
    name="quantize",
    flow_run_name="{request.label} {request.recipe.bits_label}",
    task_runner=THREADS,  # type: ignore[arg-type]
)
def quantize(request: Request, compare: bool = True) -> dict[str, Any]:
    """Quantizes one checkpoint, registers the result and returns the report.

    Args:
        request: checkpoint, data and recipe.
        compare: also run rounding to nearest and the same recipe with k = 0, for the report.
    """
    with connected() as store, Progress() as progress, shown_in_prefect(progress):
        return run_quantize(request, compare, store, progress)


def run_quantize(
    request: Request, compare: bool, store: Store, progress: Progress
) -> dict[str, Any]:
    """The body of the flow, on services that are connected already."""
    start = time.monotonic()
    request = request.on(has_gpu())
    prepared = prepare(request)
    check_owner(request, prepared.source, prepared.cell.network.paths)
    prepared.upload(store)
    with opened_run(EXPERIMENT, prepared, progress) as opened:
        variants = _variants(prepared) if compare else {"main": prepared}
        plan, results, counts = execute(
            [each.cell for each in variants.values()],
            store,
            progress,
            refill=lambda: prepared.upload(store),
        )
        cells = dict(zip(variants, plan.cells, strict=True))
        main = cells.pop("main")
        said = report(prepared, main, results) | {"jobs": jobs_of(counts)}
        said |= details(prepared, main, plan, results) | {"model_name": request.model_name}
        said["comparison"] = _comparison(main, cells, results)
        done = finished(prepared, main, plan, results, said, cells)
        said["artifact"] = store.put_artifact(said["artifact_digest"], done.artifact)
        progress.note("registering the result")
        others = [_baseline(variants[name], cell, plan, results) for name, cell in cells.items()]
        published = _publish(done, prepared.request.model_name, opened.run_id, others)
    said |= {
        "mlflow_run_id": published.run_id,
        "mlflow_run_url": published.run_url,
        "model_name": published.model_name,
        "model_version": published.model_version,
        "exports": [_placed(row, published) for row in said["exports"]],
        "candidate": published.candidate.version,
        "candidate_reason": published.candidate.reason,
        "seconds": round(time.monotonic() - start, 1),
    }
    _show(said, main.cell.name, progress)
    return said


def _show(said: dict[str, Any], name: str, progress: Progress) -> None:
    """What came of it, on Prefect's page."""
    shown = [{k: v for k, v in row.items() if k != "losses"} for row in said["comparison"]]
    create_table_artifact(shown, key="comparison", description=name)
    link_report(said["mlflow_run_url"], name)
    progress.note(f"registered: {said['model_name']} version {said['model_version']}")
    if said["candidate_reason"]:
        say(said["candidate_reason"])


def _baseline(prepared: Prepared, cell: CellPlan, plan: Plan, results: Results) -> Finished:
    """What the main cell is compared with, as MLflow gets it."""
    said = report(prepared, cell, results) | details(prepared, cell, plan, results)
    return finished(prepared, cell, plan, results, said, {})


def _placed(row: dict[str, Any], version: Registered) -> dict[str, Any]:
    """The row of an export, with its address."""
    return row | {"file": f"models:/{version.model_name}/{version.model_version}/{row['path']}"}


def _variants(prepared: Prepared) -> dict[str, Prepared]:
    """The request beside what it has to beat: nearest rounding, and the same without joining."""
    recipe = prepared.request.recipe
    variants = {"main": prepared}
    plain = prepared.exporting(())
    layer_wise = recipe.rounding_start is RoundingStart.LAYER_WISE
    if recipe.method.learns or layer_wise:
        variants["rtn"] = plain.with_recipe(rounding_to_nearest(recipe), "rtn")
    unmeasured = recipe.capacity is CapacityKind.NONE and recipe.k is None
    if recipe.method.learns and recipe.k != 0 and not unmeasured:
        variants["k=0"] = plain.with_recipe(unjoined(recipe), "k=0")
    return variants


def rounding_to_nearest(recipe: Recipe) -> Recipe:
    """The same bits by plain rounding."""
    plain = {"correction": False, "tuning": 0, "rounding_start": "nearest"}
    return Recipe.make(unjoined(recipe).model_dump(mode="json") | plain | {"method": "rtn"})


def unjoined(recipe: Recipe) -> Recipe:
    """The same recipe with no boundary selected."""
    return Recipe.make({"selection": "top-k", "groups": (), "k": 0}, recipe)


def _comparison(
    main: CellPlan, others: dict[str, CellPlan], results: Results
) -> list[dict[str, Any]]:
    scale = Scale.of(results[main.evaluate_full].meta)
    full = scale.value(results[main.evaluate_full].meta)
    rows: list[dict[str, Any]] = [{"variant": "full precision", **scale.figures(full)}]
    for name, cell in [*((n, others[n]) for n in ("rtn", "k=0") if n in others), ("main", main)]:
        recipe = cell.cell.recipe
        found = results[cell.evaluate].meta
        value = scale.value(found)
        k = results[cell.select].meta["k"]
        method = recipe.method.name
        if not recipe.method.learns and recipe.rounding_start is RoundingStart.LAYER_WISE:
            method = recipe.rounding_start.value
        labels = {"rtn": "rtn", "k=0": f"{method} k=0"}
        rows.append(
            {
                "variant": labels.get(name, f"{method} {recipe.selection.value} k={k}"),
                **scale.figures(value),
                "drop": scale.lost(full, value),
                "oscillation": found["oscillation"],
                "final_error": found["final_error"],
                "artifact_bytes": results[cell.assemble].meta["artifact_bytes"],
                "groups": len(cell.groups),
                "losses": found["losses"],
            }
        )
    return rows


@task(
    name="publish",
    task_run_name="publish {model_name}",
    persist_result=False,
    cache_policy=NO_CACHE,
)
def _publish(
    done: Finished, model_name: str, opened: str | None, baselines: Sequence[Finished]
) -> Registered:
    made = publish(done, experiment=EXPERIMENT, model_name=model_name, opened=opened)
    for baseline in baselines:
        publish_baseline(baseline, made, done.key, experiment=EXPERIMENT)
    return made
