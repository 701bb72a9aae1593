"""Runs the jobs of a plan one after another, and measures each: seconds, memory of the GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.check_gpu.subject import Subject
from modcap.core.serialization import Result
from modcap.jobs.job import Job
from modcap.jobs.plan import plan
from modcap.jobs.run_job import run_job
from modcap.recipe import Recipe

__all__ = ["run_measured", "synchronized_seconds"]


def run_measured(
    subject: Subject, recipe: Recipe
) -> tuple[dict[str, Result], list[dict[str, Any]]]:
    """The results by key, and a row for each job."""
    cache, results = subject.cache(), dict[str, Result]()
    rows = []
    for job in _jobs(subject, recipe, results):
        cache.make_room(job.work.counts_activations or job.work.small)
        if job.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        results[job.key] = run_job(job, cache, [results[key] for key in job.needs])
        rows.append(_row(job, synchronized_seconds(job.device, start)))
        cache.tidy()
    return results, rows


def _jobs(subject: Subject, recipe: Recipe, results: dict[str, Result]) -> Iterator[Job]:
    """Planned again whenever a selection opens more of the plan."""
    cell = subject.cell(recipe)
    while todo := [j for j in plan([cell], results.get).jobs if j.key not in results]:
        yield from todo


def synchronized_seconds(device: str, start: float) -> float:
    """Since ``start``, with all that the GPU was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return round(time.perf_counter() - start, 3)


def _row(job: Job, seconds: float) -> dict[str, Any]:
    row: dict[str, Any] = {"job": job.label, "kind": job.kind, "seconds": seconds}
    if job.work.steps:
        row |= {"steps": job.work.steps, "ms_per_step": round(1000 * seconds / job.work.steps, 2)}
    if job.device == "cuda":
        row |= {
            "allocated_bytes": torch.cuda.max_memory_allocated(),
            "reserved_bytes": torch.cuda.max_memory_reserved(),
            "estimated_bytes": job.room.memory,
        }
    return row
