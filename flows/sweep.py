"""A sweep: a grid of checkpoints, bit-widths, k and seeds as one plan, compared, registered."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from modcap.core.errors import GateRefused, ModcapError
from modcap.core.messages import first_line
from modcap.core.serialization import canonical, digest
from modcap.flows.execution.connect import connected
from modcap.flows.execution.execute import Counts, Execution
from modcap.flows.execution.prefect_page import shown_in_prefect
from modcap.flows.execution.progress import Progress
from modcap.flows.quantize import EXPERIMENT, THREADS
from modcap.flows.registry.mlflow_runs import Parent, closing_parent, finish_parent, start_parent
from modcap.flows.registry.owner import check_owner
from modcap.flows.registry.publish import Published, Registered, publish_cell
from modcap.flows.reports import plots
from modcap.flows.reports.cell_record import Finished, details, finished, jobs_of, report
from modcap.flows.reports.document import SweepReport, report_of
from modcap.flows.reports.link import PAGE, link_report
from modcap.flows.reports.page import page_of
from modcap.flows.requests.request import Prepared
from modcap.flows.requests.sweep_grid import Sweep, prepare_sweep, sharing
from modcap.jobs.job import REVISION, Cell
from modcap.jobs.plan import CellPlan
from modcap.ptq.measured import TOP1, Scale
from modcap.tasks.storage.store import Store
from modcap.tasks.workers.gpus import has_gpu

__all__ = ["run_sweep", "sweep"]


@flow(name="sweep", flow_run_name="{grid.label}", task_runner=THREADS)  # type: ignore[arg-type]
def sweep(grid: Sweep) -> dict[str, Any]:
    """Quantizes every cell of the grid, compares them and registers the best of each checkpoint."""
    with connected() as store, Progress() as progress, shown_in_prefect(progress):
        return run_sweep(grid, store, progress)


def run_sweep(grid: Sweep, store: Store, progress: Progress) -> dict[str, Any]:
    """The body of the flow, on services that are connected already.

    Raises:
        GateRefused: no cell of a checkpoint meets the constraints; with the report.
        ModcapError: cells failed; the others are done, and the report says which.
    """
    start = time.monotonic()
    grid = grid.on(has_gpu())
    prepared = prepare_sweep(grid)
    for own in {p.request.model_name: p for p in prepared}.values():
        check_owner(own.request, own.source, own.cell.network.paths)
    _upload(prepared, store)
    parent = _start(_name(grid, prepared), _key(grid, [p.cell for p in prepared]))
    with closing_parent(parent):
        refill = partial(_upload, prepared, store)
        cells = [p.cell for p in prepared]
        execution = Execution(cells, store, progress, refill=refill)
        execution.run()
        rows = _rows(prepared, execution)
        best = {label: _best(grid, rows, label) for label in {row["label"] for row in rows}}
        _publish_rows(prepared, execution, rows, best, parent, store, progress)
        names = {name: None if row is None else row["name"] for name, row in best.items()}
        summary = _Summary(grid, rows, names, sharing(execution.plan), execution.counts)
        nested = [row["mlflow_run_id"] for row in rows if row["state"] == "finished"]
        write = summary.write
        parent = finish_parent(EXPERIMENT, parent, summary.metrics(), write, nested, _failed(rows))
    create_table_artifact(summary.table(), key="sweep", description=_name(grid, prepared))
    link_report(parent.url, _name(grid, prepared))
    report = summary.report() | {
        "mlflow_run_id": parent.run_id,
        "mlflow_run_url": parent.url,
        "seconds": round(time.monotonic() - start, 1),
    }
    _refuse(grid, rows, best, parent, report)
    return report


def _upload(prepared: Sequence[Prepared], store: Store) -> None:
    for base in {id(p.calibration): p for p in prepared}.values():
        base.upload(store)


def _publish_rows(
    prepared: Sequence[Prepared],
    execution: Execution,
    rows: list[dict[str, Any]],
    best: Mapping[str, dict[str, Any] | None],
    parent: Parent,
    store: Store,
    progress: Progress,
) -> None:
    """Logs every finished cell, and registers the best; says so in its row."""
    for index, (prep, row) in enumerate(zip(prepared, rows, strict=True)):
        if row["state"] == "failed":
            continue
        chosen = best[row["label"]] is row
        own, cell = execution, execution.plan.cells[index]
        if chosen and prep.request.formats:
            own = _exported(prep, store, progress, parent)
            cell = own.plan.cells[0]
            if failure := own.failure(cell):
                row |= {"state": "failed", "reason": first_line(failure)}
                continue
            row |= {"exports": report(prep, cell, own.results)["exports"]}
        said = row | details(prep, cell, own.plan, own.results)
        done = finished(prep, cell, own.plan, own.results, said, {})
        row["artifact"] = said["artifact"] = store.put_artifact(
            row["artifact_digest"], done.artifact
        )
        progress.note(f"logging {row['name']}")
        published = _publish_cell(done, parent, row["model_name"] if chosen else None)
        row["mlflow_run_id"] = published.run_id
        if isinstance(published, Registered):
            row["model_version"] = published.model_version
            row["candidate"] = published.candidate.version
            if published.candidate.reason:
                progress.note(f"{row['model_name']}: {published.candidate.reason}")


def _exported(prepared: Prepared, store: Store, progress: Progress, parent: Parent) -> Execution:
    """The cell with its exports: all other jobs of it are done."""
    cell = prepared.exporting(prepared.request.formats).cell
    refill = partial(_upload, [prepared], store)
    execution = Execution([cell], store, progress, refill=refill)
    execution.run()
    return execution


def _failed(rows: Sequence[dict[str, Any]]) -> str:
    """What is said of the cells that failed, in one line; nothing where none did."""
    failed = [row for row in rows if row["state"] == "failed"]
    if not failed:
        return ""
    first = failed[0]
    return f"{len(failed)} of {len(rows)} cells failed: {first['name']}: {first['reason']}"


def _refuse(
    grid: Sweep,
    rows: Sequence[dict[str, Any]],
    best: Mapping[str, dict[str, Any] | None],
    parent: Parent,
    report: dict[str, Any],
) -> None:
    """Raises, with the report, where cells failed, or none of a checkpoint is good enough."""
    if failure := _failed(rows):
        raise ModcapError(f"{failure} (all others are in {parent.url})", report)
    without = sorted(name for name, row in best.items() if row is None)
    if without:
        raise GateRefused(
            f"no cell of {', '.join(without)} meets {grid.max_drop=} {grid.max_bytes=}: all "
            f"{len(rows)} cells are in {parent.url}, nothing of it was registered",
            report,
        )


def _name(grid: Sweep, prepared: Sequence[Prepared]) -> str:
    return f"sweep of {len(prepared)} cells over {len(grid.requests)} checkpoint(s)"


def _key(grid: Sweep, cells: Sequence[Cell]) -> str:
    """Equal sweeps have one run: the same cells under the same constraints, by one revision."""
    formats = [request.formats for request in grid.requests]
    made = [[c.network.digest, c.calibration, c.evaluation, c.recipe.digest] for c in cells]
    return digest(canonical(["sweep", REVISION, made, formats, grid.max_drop, grid.max_bytes]))


def _rows(prepared: Sequence[Prepared], execution: Execution) -> list[dict[str, Any]]:
    rows = []
    for prep, cell in zip(prepared, execution.plan.cells, strict=True):
        failure = execution.failure(cell)
        row = _failed_row(prep, failure) if failure else _finished_row(prep, cell, execution)
        named = {"name": prep.cell.name, "label": prep.request.label}
        named |= {"model_name": prep.request.model_name}
        rows.append(row | named | {"jobs": jobs_of(execution.counts)})
    return rows


def _finished_row(prepared: Prepared, cell: CellPlan, execution: Execution) -> dict[str, Any]:
    return report(prepared, cell, execution.results) | {"state": "finished"}


def _failed_row(prepared: Prepared, failure: ModcapError) -> dict[str, Any]:
    recipe = prepared.request.recipe
    return {
        "state": "failed",
        "reason": first_line(failure),
        "checkpoint": prepared.request.checkpoint,
        "recipe": recipe.model_dump(mode="json"),
        "bits": recipe.bits_label,
        "k_asked": recipe.k_asked,
    }


def _best(grid: Sweep, rows: list[dict[str, Any]], label: str) -> dict[str, Any] | None:
    """The best cell that fits; where only the drop is bounded, the smallest one."""
    fit = [
        row
        for row in rows
        if row["label"] == label
        and row["state"] == "finished"
        and (grid.max_drop is None or row["drop"] <= grid.max_drop)
        and (grid.max_bytes is None or row["artifact_bytes"] <= grid.max_bytes)
    ]
    if grid.max_drop is not None and grid.max_bytes is None:
        return min(fit, key=lambda row: (row["artifact_bytes"], -_good(row)), default=None)
    return min(fit, key=lambda row: (-_good(row), row["artifact_bytes"]), default=None)


def _good(row: Mapping[str, Any]) -> float:
    """Larger for a better row, of those by one metric."""
    scale = Scale.of(row)
    return scale.goodness(scale.value(row))


@dataclass(frozen=True)
class _Summary:
    """What a sweep found, as numbers, a table and pictures."""

    grid: Sweep
    rows: list[dict[str, Any]]
    best: Mapping[str, str | None]
    shared: dict[str, int]
    counts: Counts

    @property
    def finished(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["state"] == "finished"]

    @property
    def scales(self) -> list[tuple[Scale, list[dict[str, Any]]]]:
        """What finished rows were measured in, and those that were measured so."""
        found: dict[Scale, list[dict[str, Any]]] = {}
        for row in self.finished:
            found.setdefault(Scale.of(row), []).append(row)
        return list(found.items())

    def metrics(self) -> dict[str, float]:
        best = {
            f"best_{scale.label}": scale.value(max(rows, key=_good)) for scale, rows in self.scales
        }
        return {
            "cells": len(self.rows),
            "cells_failed": len(self.rows) - len(self.finished),
            **best,
            "reconstructions_distinct": self.shared["distinct"],
            "reconstructions_independent": self.shared["independent"],
            "jobs_executed": self.counts.executed,
            "jobs_reused": self.counts.reused,
        }

    def table(self) -> list[dict[str, Any]]:
        shown: tuple[str, ...] = ("drop", "artifact_bytes", "oscillation", "final_error", "k")
        if any(row["state"] == "failed" for row in self.rows):
            shown = (*shown, "state", "reason")
        labels = {scale.label: scale for scale, _ in self.scales}
        return [
            {
                "name": row.get("name"),
                **{name: _figure(row, scale) for name, scale in labels.items()},
                **{name: row.get(name) for name in shown},
            }
            for row in self.rows
        ]

    def report(self) -> dict[str, Any]:
        return {
            "cells": self.rows,
            "best": dict(self.best),
            "jobs": jobs_of(self.counts),
            "reconstructions": self.shared
            | {"ratio": round(self.shared["distinct"] / max(1, self.shared["independent"]), 4)},
        }

    def write(self, folder: Path) -> None:
        (folder / "sweep.json").write_text(json.dumps(self.report(), indent=1))
        page = page_of(report_of(self.report(), "this sweep"))
        (folder / PAGE).write_text(page, encoding="utf-8")
        if not self.finished:
            return
        (folder / "plots").mkdir()
        pictures = {}
        cells = SweepReport.model_validate(self.report()).cells
        for scale, rows in self.scales:
            points = [
                (row["artifact_bytes"], scale.value(row), f"{row['label']} {row['bits']}")
                for row in rows
            ]
            predicted = [c.predicted for c in cells if c.scale == scale and c.predicted is not None]
            name = "pareto" if scale.metric == TOP1 else f"pareto-{scale.label}"
            pictures[name] = plots.pareto(points, scale, predicted)
        for model in sorted({row["label"] for row in self.finished}):
            of_model = [row for row in self.finished if row["label"] == model]
            values: dict[tuple[str, str], list[float]] = {}
            scale = Scale.of(of_model[0])
            for row in of_model:
                values.setdefault((row["bits"], row["k_asked"]), []).append(scale.value(row))
            pictures[f"heat_map-{model}"] = plots.heat_map(values, scale)
        for name, figure in pictures.items():
            (folder / "plots" / f"{name}.png").write_bytes(plots.png(figure))


def _figure(row: dict[str, Any], scale: Scale) -> float | None:
    """Of a finished row that was measured so."""
    measured = row["state"] == "finished" and Scale.of(row) == scale
    return scale.value(row) if measured else None


@task(name="start sweep", persist_result=False, cache_policy=NO_CACHE)
def _start(name: str, key: str) -> Parent:
    return start_parent(EXPERIMENT, name, key)


@task(name="publish cell", persist_result=False, cache_policy=NO_CACHE)
def _publish_cell(done: Finished, parent: Parent, model_name: str | None) -> Published:
    return publish_cell(done, parent, experiment=EXPERIMENT, model_name=model_name)
