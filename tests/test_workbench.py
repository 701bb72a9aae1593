"""What a worker keeps between jobs saves time and changes no byte."""

from __future__ import annotations

import pytest
import torch

import modcap
from modcap.images import ImageSet
from modcap.jobs import Cell
from modcap.network import build
from modcap.plan import plan
from modcap.results import Result, encode
from modcap.runners import run
from modcap.workbench import Activations, Workbench
from modcap.zoo import resnet18_narrow


def test_the_oldest_activations_go_first() -> None:
    kept = Activations(limit=3 * 4 * 10)
    for key in "abc":
        kept.put(key, torch.zeros(10))
    assert kept.get("a") is not None  # used last, so "b" is the oldest
    kept.put("d", torch.zeros(10))
    assert [kept.get(key) is None for key in "abcd"] == [False, True, False, False]
    kept.put("large", torch.zeros(31))
    assert kept.get("large") is None


@pytest.mark.parametrize("schedule", ["sequential", "waves"])
def test_results_are_the_same_with_and_without_kept_activations(schedule: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(24, 1, 28, 28)
    network = build(resnet18_narrow().eval(), x[:2])
    images = ImageSet(x, torch.zeros(24, dtype=torch.int64), (0.0,), (1.0,))
    settings = {"iterations": 2, "batch_size": 8}
    recipe = modcap.Recipe.preset(
        "quick", k=2, schedule=schedule, path_share=0.5, optimiser=settings
    )
    cell = Cell(network, images.digest, images.digest, recipe)
    inputs = {network.digest: network, images.digest: images}

    def all_results(limit: int) -> dict[str, bytes]:
        bench = Workbench.holding(inputs)
        bench.activations = Activations(limit)
        results: dict[str, Result] = {}
        while todo := [j for j in plan([cell], results.get).jobs if j.key not in results]:
            for job in todo:
                results[job.key] = run(job, bench, [results[key] for key in job.needs])
        return {key: encode(result)[1] for key, result in results.items()}

    assert all_results(1 << 30) == all_results(0)
