"""Exports as jobs of a plan: content-addressed, and the same file as by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from modcap.core.serialization import Result
from modcap.data.image_set import ImageSet
from modcap.export import Known
from modcap.export.artifact import unpack_network
from modcap.jobs.job import Cell, Job
from modcap.jobs.plan import Plan, plan
from modcap.jobs.run_job import run_job
from modcap.jobs.worker_cache import WorkerCache
from modcap.recipe import Recipe
from tests.golden import small_network

KNOWN = Known({}, {"source_digest": "ab" * 32}, "mean=0.5,std=0.25", ("cat", "dog", "eel"))


@pytest.fixture(scope="module")
def cell() -> tuple[Cell, WorkerCache]:
    network, x = small_network()
    images = ImageSet(x, torch.zeros(len(x), dtype=torch.int64), (0.0,), (1.0,))
    recipe = Recipe(method="rtn", k=0, calibration=32)
    made = Cell(network, images.digest, images.digest, recipe, "small", known=KNOWN)
    return made, WorkerCache.holding({network.digest: network, images.digest: images})


def run(cell: Cell, cache: WorkerCache) -> tuple[Plan, dict[str, Result]]:
    results: dict[str, Result] = {}
    while todo := [job for job in plan([cell], results.get).jobs if job.key not in results]:
        for job in todo:
            results[job.key] = run_job(job, cache, [results[key] for key in job.needs])
    return plan([cell], results.get), results


def exports(made: Plan) -> dict[str, Job]:
    return {job.work.model_dump()["format"]: job for job in made.jobs if job.kind == "export"}


def test_files_say_where_they_come_from(cell: tuple[Cell, WorkerCache]) -> None:
    wanted = replace(cell[0], exports=("onnx", "pt2", "encodings", "safetensors"))
    made, results = run(wanted, cell[1])
    (planned,) = made.cells
    jobs = exports(made)
    assert tuple(jobs) == wanted.exports
    assert tuple(job.key for job in jobs.values()) == planned.exports
    assert made.needed(planned) >= set(planned.exports)
    artifact = results[planned.assemble].tensors["artifact"].numpy().tobytes()
    network = unpack_network(artifact)
    assert (network.preprocess, network.classes) == (KNOWN.preprocess, KNOWN.classes)
    for name, job in jobs.items():
        result = results[job.key]
        data = result.tensors["export"].numpy().tobytes()
        assert len(data) == result.meta["bytes"]
        if name == "safetensors":
            assert data == artifact
        elif name != "encodings":
            assert result.meta["agreement"] == 100
            assert result.meta["compared_images"] == 12  # random ones, and of calibration
            for word in ("ab" * 32, wanted.recipe.digest, "mean=0.5,std=0.25", "eel"):
                assert word.encode() in data, name


def test_keys_tell_formats_and_origins_apart_and_leave_the_others_alone(
    cell: tuple[Cell, WorkerCache],
) -> None:
    plain, results = run(replace(cell[0], known=Known()), cell[1])
    bare = replace(cell[0], known=Known(), exports=("onnx", "pt2"))
    more = plan([bare], results.get)
    assert {job.key for job in more.jobs} > {job.key for job in plain.jobs}
    other = replace(bare, known=Known(digests={"source_digest": "cd" * 32}))
    keys = [
        job.key for made in (more, plan([other], results.get)) for job in exports(made).values()
    ]
    assert len(set(keys)) == 4
