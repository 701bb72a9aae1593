"""The CUDA paths, where a GPU is present."""

from __future__ import annotations

import pytest
import torch

import modcap
from modcap import zoo
from modcap.graph.network import build
from modcap.recipe import Device, Recipe
from modcap.tasks.workers.gpus import keep_to_share

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here"),
    pytest.mark.filterwarnings("default::UserWarning"),  # of operators without a fixed order
]

STEPS = {"iterations": 20, "batch_size": 8}


@pytest.mark.parametrize("fields", [{}, {"schedule": "waves"}, {"capacity": "data-dependent"}])
def test_a_gpu_gives_an_artifact_like_that_of_the_cpu(fields: dict[str, str]) -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 1, 28, 28)
    network = build(zoo.resnet18_narrow().eval(), x[:2])
    made = {
        device: modcap.quantize(
            network,
            x,
            Recipe.preset("quick", w_bits=4, k=1, device=device, optimiser=STEPS, **fields),
        )
        for device in ("cpu", "cuda")
    }
    gpu, cpu = made["cuda"], made["cpu"]
    assert gpu.losses[-1] < 1.5 * cpu.losses[-1]
    assert gpu.groups == cpu.groups
    assert all(not t.is_cuda for r in gpu.results.values() for t in r.tensors.values())
    logits = gpu.network(x)  # loaded back, on the CPU
    assert torch.nn.functional.cosine_similarity(logits, cpu.network(x)).mean() > 0.9


def test_auto_is_the_gpu() -> None:
    x = torch.randn(16, 1, 28, 28)
    recipe = Recipe.preset("quick", method="rtn", k=0)
    done = modcap.quantize(zoo.vgg_tiny().eval(), x, recipe)
    assert done.recipe.device is Device.CUDA
    made = {result.meta["environment"]["processor"] for result in done.results.values()}
    assert torch.cuda.get_device_name() in made


def test_a_process_keeps_to_its_share_of_the_memory() -> None:
    keep_to_share(0.1)
    half = torch.cuda.get_device_properties(0).total_memory // 2
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.empty(half, dtype=torch.uint8, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_same_gpu_gives_the_same_bytes_twice() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 1, 28, 28)
    network = build(zoo.resnet18_narrow().eval(), x[:2])
    recipe = Recipe.preset("quick", k=0, device="cuda", optimiser=STEPS)
    first, second = (modcap.quantize(network, x, recipe).artifact for _ in range(2))
    assert first == second
