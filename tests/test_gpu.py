"""The CUDA paths, where a GPU is present."""

from __future__ import annotations

import pytest
import torch

import modcap
from modcap import zoo
from modcap.graph.network import build
from modcap.recipe import Recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here"),
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


def test_the_same_gpu_gives_the_same_bytes_twice() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 1, 28, 28)
    network = build(zoo.resnet18_narrow().eval(), x[:2])
    recipe = Recipe.preset("quick", k=0, device="cuda", optimiser=STEPS)
    first, second = (modcap.quantize(network, x, recipe).artifact for _ in range(2))
    assert first == second
