"""What a worker keeps between jobs saves time and changes no byte."""

from __future__ import annotations

import pytest
import torch

import modcap
from modcap.core.serialization import Result, encode
from modcap.data.image_set import ImageSet
from modcap.graph.network import build
from modcap.jobs.activation_cache import Activations
from modcap.jobs.job import Cell, Work
from modcap.jobs.kinds.evaluate import EvaluateFull
from modcap.jobs.kinds.reconstruct import Reconstruct
from modcap.jobs.kinds.whole import Correct, Tune
from modcap.jobs.plan import plan
from modcap.jobs.run_job import run_job
from modcap.jobs.worker_cache import WorkerCache
from modcap.zoo import resnet18_narrow
from tests.golden import small_network


@pytest.mark.parametrize("schedule", ["sequential", "waves"])
def test_results_are_the_same_whatever_is_kept_and_where(schedule: str) -> None:
    network, x = small_network()
    images = ImageSet(x, torch.zeros(len(x), dtype=torch.int64), (0.0,), (1.0,))
    settings = {"iterations": 2, "batch_size": 8}
    recipe = modcap.Recipe.preset(
        "quick", k=2, schedule=schedule, path_share=0.5, optimiser=settings
    )
    small = recipe.model_copy(update={"activation_memory": 1e-6})  # all in files
    inputs = {network.digest: network, images.digest: images}

    def all_results(recipe: modcap.Recipe, limit: int) -> dict[str, bytes]:
        cell = Cell(network, images.digest, images.digest, recipe)
        bench = WorkerCache.holding(inputs)
        bench.activations = Activations(limit)
        results: dict[str, Result] = {}
        while todo := [j for j in plan([cell], results.get).jobs if j.key not in results]:
            for job in todo:
                results[job.key] = run_job(job, bench, [results[key] for key in job.needs])
        return {key: encode(result)[1] for key, result in results.items()}

    assert all_results(recipe, 1 << 30) == all_results(recipe, 0) == all_results(small, 0)


def test_images_have_one_digest_whatever_their_layout() -> None:
    pixels = torch.rand(4, 3, 5, 5)
    other = pixels.to(memory_format=torch.channels_last)
    sets = [ImageSet(p, torch.zeros(4).long(), (0.0,) * 3, (1.0,) * 3) for p in (pixels, other)]
    assert sets[0].digest == sets[1].digest


def test_what_is_kept_between_jobs_is_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 1, 28, 28)
    network = build(resnet18_narrow().eval(), x)
    images = {
        str(i): ImageSet(torch.zeros(100, 1, 28, 28), torch.zeros(100).long(), (i,), (1.0,))
        for i in range(5)
    }
    inputs = {network.digest: network.to_bytes()} | {n: v.to_bytes() for n, v in images.items()}
    fetched: list[str] = []

    def fetch(digest: str) -> bytes:
        fetched.append(digest)
        return inputs[digest]

    one = 100 * 28 * 28 * 4
    monkeypatch.setattr("modcap.jobs.worker_cache._INPUTS", 3 * one)
    bench = WorkerCache(fetch)

    def read(name: str) -> None:
        bench.make_room(counted=False)
        bench.images(name)
        bench.tidy()
        assert bench._kept.bytes <= 3 * one

    for name in ("0", "1", "0", "2", "0"):
        read(name)
    assert fetched == ["0", "1", "2"]
    monkeypatch.setattr("modcap.jobs.worker_cache._INPUTS", one)
    read("0")
    read("1")
    assert fetched == ["0", "1", "2", "1"]


def test_activations_are_dropped_before_jobs_whose_estimate_does_not_count_them() -> None:
    bench = WorkerCache.holding({})
    kinds: tuple[tuple[type[Work], bool], ...] = (
        (Reconstruct, True),
        (Tune, True),
        (EvaluateFull, False),
        (Correct, False),
    )
    for kind, stays in kinds:
        bench.activations.put("x", torch.zeros(10))
        bench.make_room(kind.counts_activations)
        assert (bench.activations.get("x") is not None) == stays
