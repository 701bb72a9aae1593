"""A sweep: a grid of checkpoints, bit-widths, k and seeds as one plan, compared, registered."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from modcap.core.errors import GateRefused
from modcap.core.serialization import canonical, digest
from modcap.flows.execution.connect import connected
from modcap.flows.execution.execute import Counts, execute
from modcap.flows.execution.progress import Progress
from modcap.flows.quantize import EXPERIMENT, THREADS
from modcap.flows.registry.mlflow_runs import Parent, finish_parent, start_parent
from modcap.flows.registry.publish import Published, Registered, publish_cell
from modcap.flows.reports import plots
from modcap.flows.reports.cell_record import Finished, finished, jobs_of, report
from modcap.flows.requests.request import Prepared
from modcap.flows.requests.sweep_grid import Sweep, prepare_sweep, sharing
from modcap.jobs.job import Cell
from modcap.jobs.plan import Plan
from modcap.tasks.storage.store import Store

__all__ = ["run_sweep", "sweep"]


@flow(name="sweep", task_runner=THREADS)  # type: ignore[arg-type]
def sweep(grid: Sweep) -> dict[str, Any]:
    """Quantizes every cell of the grid, compares them and registers the best of each checkpoint."""
    with connected() as store, Progress() as progress:
        return run_sweep(grid, store, progress)


def run_sweep(grid: Sweep, store: Store, progress: Progress) -> dict[str, Any]:
    """The body of the flow, on services that are connected already."""
    start = time.monotonic()
    prepared = prepare_sweep(grid)
    for base in {id(p.calibration): p for p in prepared}.values():
        base.upload(store)
    parent = _start(_name(grid, prepared), _key(grid, [p.cell for p in prepared]))
    plan, results, counts = execute([p.cell for p in prepared], store, progress, parent.url)
    rows = _rows(prepared, plan, results, counts)
    best = {name: _best(grid, rows, name) for name in {row["model_name"] for row in rows}}
    for prep, cell, row in zip(prepared, plan.cells, rows, strict=True):
        done = finished(prep, cell, plan, results, row, {})
        row["artifact"] = store.put_artifact(row["artifact_digest"], done.artifact)
        chosen = best[row["model_name"]] is row
        progress.note(f"logging {row['name']}")
        published = _publish_cell(done, parent, row["model_name"] if chosen else None)
        row["mlflow_run_id"] = published.run_id
        if isinstance(published, Registered):
            row["model_version"] = published.model_version
    summary = _Summary(grid, rows, sharing(plan), counts)
    nested = [row["mlflow_run_id"] for row in rows]
    parent = finish_parent(EXPERIMENT, parent, summary.metrics(), summary.write, nested)
    create_table_artifact(summary.table(), key="sweep", description=_name(grid, prepared))
    report = summary.report() | {
        "best": {name: row and row["name"] for name, row in best.items()},
        "mlflow_run_id": parent.run_id,
        "mlflow_run_url": parent.url,
        "seconds": round(time.monotonic() - start, 1),
    }
    without = sorted(name for name, row in best.items() if row is None)
    if without:
        raise GateRefused(
            f"no cell of {', '.join(without)} meets {grid.max_drop=} {grid.max_bytes=}: all "
            f"{len(rows)} cells are in {parent.url}, nothing of it was registered",
            report,
        )
    return report


def _name(grid: Sweep, prepared: Sequence[Prepared]) -> str:
    return f"sweep of {len(prepared)} cells over {len(grid.requests)} checkpoint(s)"


def _key(grid: Sweep, cells: Sequence[Cell]) -> str:
    """Equal sweeps have one run: the same cells under the same constraints."""
    made = [[c.network.digest, c.calibration, c.evaluation, c.recipe.digest] for c in cells]
    return digest(canonical(["sweep", made, grid.max_drop, grid.max_bytes]))


def _rows(
    prepared: Sequence[Prepared], plan: Plan, results: Any, counts: Counts
) -> list[dict[str, Any]]:
    rows = []
    for prep, cell in zip(prepared, plan.cells, strict=True):
        said = report(prep, cell, results)
        said["name"], said["model_name"] = prep.cell.name, prep.request.model_name
        said["drop"] = round(said["fp_top1"] - said["top1"], 4)
        said["jobs"] = jobs_of(counts)
        rows.append(said)
    return rows


def _best(grid: Sweep, rows: list[dict[str, Any]], model_name: str) -> dict[str, Any] | None:
    """The most accurate cell that fits; where only the drop is bounded, the smallest one."""
    fit = [
        row
        for row in rows
        if row["model_name"] == model_name
        and (grid.max_drop is None or row["drop"] <= grid.max_drop)
        and (grid.max_bytes is None or row["artifact_bytes"] <= grid.max_bytes)
    ]
    if grid.max_drop is not None and grid.max_bytes is None:
        return min(fit, key=lambda row: (row["artifact_bytes"], -row["top1"]), default=None)
    return min(fit, key=lambda row: (-row["top1"], row["artifact_bytes"]), default=None)


@dataclass(frozen=True)
class _Summary:
    """What a sweep found, as numbers, a table and pictures."""

    grid: Sweep
    rows: list[dict[str, Any]]
    shared: dict[str, int]
    counts: Counts

    def metrics(self) -> dict[str, float]:
        return {
            "cells": len(self.rows),
            "best_top1": max(row["top1"] for row in self.rows),
            "reconstructions_distinct": self.shared["distinct"],
            "reconstructions_independent": self.shared["independent"],
            "jobs_executed": self.counts.executed,
            "jobs_reused": self.counts.reused,
        }

    def table(self) -> list[dict[str, Any]]:
        shown = ("name", "top1", "drop", "artifact_bytes", "oscillation", "final_error", "k")
        return [{name: row[name] for name in shown} for row in self.rows]

    def report(self) -> dict[str, Any]:
        return {
            "cells": self.rows,
            "jobs": jobs_of(self.counts),
            "reconstructions": self.shared
            | {"ratio": round(self.shared["distinct"] / self.shared["independent"], 4)},
        }

    def write(self, folder: Path) -> None:
        (folder / "plots").mkdir()
        points = [
            (row["artifact_bytes"], row["top1"], f"{row['model_name']} {row['bits']}")
            for row in self.rows
        ]
        pictures = {"pareto": plots.pareto(points)}
        for model in sorted({row["model_name"] for row in self.rows}):
            of_model = [row for row in self.rows if row["model_name"] == model]
            values: dict[tuple[str, str], list[float]] = {}
            for row in of_model:
                values.setdefault((row["bits"], row["k_asked"]), []).append(row["top1"])
            pictures[f"heat_map-{model}"] = plots.heat_map(values)
        for name, figure in pictures.items():
            (folder / "plots" / f"{name}.png").write_bytes(plots.png(figure))
        (folder / "sweep.json").write_text(json.dumps(self.report(), indent=1))


@task(name="start sweep", persist_result=False, cache_policy=NO_CACHE)
def _start(name: str, key: str) -> Parent:
    return start_parent(EXPERIMENT, name, key)


@task(name="publish cell", persist_result=False, cache_policy=NO_CACHE)
def _publish_cell(done: Finished, parent: Parent, model_name: str | None) -> Published:
    return publish_cell(done, parent, experiment=EXPERIMENT, model_name=model_name)
