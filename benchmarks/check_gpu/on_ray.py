"""Jobs with ``device: cuda`` as Ray tasks: a whole plan, and two jobs on shares of one GPU."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import torch

from benchmarks.check_gpu.subject import Asked, Subject
from modcap.api import quantize
from modcap.core.serialization import Result, decode, encode
from modcap.jobs.job import Job
from modcap.jobs.plan import plan
from modcap.tasks.workers.gpus import has_gpu
from modcap.tasks.workers.ray_jobs import ProgressBoard, run_jobs, run_jobs_on_gpu
from modcap.tasks.workers.ray_resources import GPU_MEMORY, request

__all__ = ["FolderStore", "run_on_ray", "two_at_once"]


@dataclass(frozen=True)
class FolderStore:
    """What a worker asks of the store, in a folder: no S3 server may be there."""

    folder: str

    def put_input(self, digest: str, data: bytes) -> None:
        (Path(self.folder) / digest).write_bytes(data)

    def fetch_input(self, digest: str, folder: Path) -> Path:
        return Path(self.folder) / digest

    def get(self, key: str) -> Result | None:
        document = Path(self.folder) / f"{key}.json"
        if not document.exists():
            return None
        return decode(document.read_bytes(), document.with_suffix(".safetensors").read_bytes())

    def get_all(self, keys: set[str]) -> dict[str, Result]:
        return {key: result for key in keys if (result := self.get(key))}

    def settle(self, key: str, result: Result) -> Result:
        document, tensors = encode(result)
        for suffix, data in ((".safetensors", tensors), (".json", document)):
            part = Path(self.folder) / f"{key}.{os.getpid()}"
            part.write_bytes(data)
            part.replace(Path(self.folder) / f"{key}{suffix}")
        return result


@contextmanager
def _cluster(asked: Asked) -> Iterator[tuple[FolderStore, Any]]:
    """Ray on this machine, and a store that its workers share."""
    resources = {}
    if asked.device == "cuda":
        resources = {GPU_MEMORY: torch.cuda.get_device_properties(0).total_memory}
    with TemporaryDirectory() as folder:
        ray.init(resources=resources, include_dashboard=False, log_to_driver=False)
        try:
            yield FolderStore(folder), ProgressBoard.remote()
        finally:
            ray.shutdown()


def _started(job: Job, store: FolderStore, board: Any, **options: Any) -> Any:
    remote = run_jobs_on_gpu if job.device == "cuda" else run_jobs
    return remote.options(**request(job) | options).remote((job,), store, board)


def _put_inputs(subject: Subject, store: FolderStore) -> None:
    store.put_input(subject.network.digest, subject.network.to_bytes())
    with (Path(store.folder) / subject.images.digest).open("wb") as file:
        subject.images.write(file)


def run_on_ray(asked: Asked) -> dict[str, Any]:
    """The whole plan, its artifact beside that of this process: the bytes must be equal."""
    subject = Subject.made("resnet18_narrow", asked, 128)
    recipe = subject.recipe(asked.device, asked, k=1)
    with _cluster(asked) as (store, board):
        _put_inputs(subject, store)
        start = time.perf_counter()
        auto = has_gpu()
        asking = time.perf_counter() - start
        start = time.perf_counter()
        known, jobs = _all(partial(_started, store=store, board=board), subject, recipe, store)
        seconds = time.perf_counter() - start
    x = subject.images.normalized(0, len(subject.images))
    here = quantize(subject.network, x, recipe, progress=False).artifact
    there = known.tensors["artifact"].numpy().tobytes()
    if auto != (asked.device == "cuda") or here != there:
        raise RuntimeError(f"auto found a GPU: {auto}; equal bytes: {here == there}")
    return {
        "has_gpu": auto,
        "has_gpu_seconds": round(asking, 1),
        "jobs": jobs,
        "seconds": round(seconds, 1),
        "artifact": hashlib.sha256(there).hexdigest(),
    }


def _all(start: Any, subject: Subject, recipe: Any, store: FolderStore) -> tuple[Result, int]:
    """Runs the plan; the result that holds the artifact, and how many jobs there were."""
    cell, results = subject.cell(recipe), dict[str, Result]()
    while todo := [j for j in plan([cell], results.get).jobs if j.key not in results]:
        ready = [job for job in todo if all(key in results for key in job.needs)]
        ray.get([start(job) for job in ready])
        results |= store.get_all({job.key for job in ready})
    (planned,) = plan([cell], results.get).cells
    return results[planned.assemble], len(results)


def two_at_once(asked: Asked) -> dict[str, Any]:
    """Seconds of two reconstructions one after another on a whole GPU, and beside each other on
    halves of it; each with the start of its process."""
    subject = Subject.made("resnet18", asked, 256)
    found: dict[str, Any] = {}
    with _cluster(asked) as (store, board):
        _put_inputs(subject, store)
        for label, share, seeds in (("whole", 1.0, (1, 2)), ("halves", 0.5, (3, 4))):
            jobs = [_reconstruction(subject, asked, seed) for seed in seeds]
            options = {"num_gpus": share} if asked.device == "cuda" else {}
            start = time.perf_counter()
            tasks = [_started(job, store, board, **options) for job in jobs]
            metas = [meta for task in tasks for meta in ray.get(task)]
            found[label] = round(time.perf_counter() - start, 2)
            found[f"{label}_jobs"] = [meta["seconds"] for meta in metas]
    return found | {"gain": round(found["whole"] / found["halves"], 2)}


def _reconstruction(subject: Subject, asked: Asked, seed: int) -> Job:
    """The one in the middle of the network; it sees full precision."""
    cell = subject.cell(subject.recipe(asked.device, asked, seed=seed, k=0))
    known: dict[str, Result] = {}
    select = plan([cell], known.get).cells[0].select
    count = len(subject.network.names)
    known[select] = Result(meta={"groups": [[i, i + 1] for i in range(count)]})
    jobs = [job for job in plan([cell], known.get).jobs if job.kind == "reconstruct"]
    return next(job for job in jobs[len(jobs) // 2 :] if not job.needs)
