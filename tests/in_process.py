"""A prepared request computed in this process, and all that is made of it but for servers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import mlflow
from mlflow.models import Model

from modcap.core.serialization import Result
from modcap.flows.registry.model_files import save_model
from modcap.flows.reports.cell_record import Finished, details, finished, report
from modcap.flows.requests.request import Prepared
from modcap.jobs.plan import Plan, plan
from modcap.jobs.run_job import run_job
from modcap.jobs.worker_cache import WorkerCache

__all__ = ["computed", "finished_of", "served"]


def computed(prepared: Prepared) -> tuple[Plan, dict[str, Result]]:
    """Every job of the one cell."""
    cell = prepared.cell
    held = {
        cell.network.digest: prepared.network,
        cell.calibration: prepared.calibration,
        cell.evaluation: prepared.evaluation,
    }
    cache, results = WorkerCache.holding(held), dict[str, Result]()
    while todo := [job for job in plan([cell], results.get).jobs if job.key not in results]:
        for job in todo:
            results[job.key] = run_job(job, cache, [results[key] for key in job.needs])
    return plan([cell], results.get), results


def finished_of(prepared: Prepared) -> Finished:
    """The cell as MLflow gets it."""
    made, found = computed(prepared)
    results = cast(Any, found)
    (cell,) = made.cells
    said = report(prepared, cell, results) | details(prepared, cell, made, results)
    return finished(prepared, cell, made, results, said, {})


def served(done: Finished, folder: Path) -> Any:
    """The registered model, loaded as MLflow loads it."""
    save_model(folder, done, Model())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return mlflow.pyfunc.load_model(str(folder))
