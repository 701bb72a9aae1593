"""The code that computes on a GPU, without one: see :mod:`tests.pretend_gpu`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modcap
from modcap.graph.network import Network, build
from modcap.quantization import scale_search
from modcap.recipe import Recipe
from tests.golden import small_network
from tests.pretend_gpu import PretendTensor, pretend_gpu

STEPS = {"iterations": 2, "batch_size": 4}
RECIPES: dict[str, dict[str, Any]] = {
    "quick": {"preset": "quick", "k": 1},
    "published": {"optimiser": {**STEPS, "iterations": 8}, "k": 1},
    "adaround": {"method": "adaround", "k": 0},
    "nearest, on errors": {"method": "rtn", "k": 0, "correction": True, "capacity": "none"},
    "capacity by errors": {"preset": "quick", "capacity": "data-dependent", "tuning": 0, "k": 1},
    "integers alone": {"activations": "all", "scales": "power-of-two", "weights": "symmetric"},
    "chosen bits": {"w_bits": "auto", "budget": 3.0, "method": "rtn", "sensitivity_images": 8},
}


class Tokens(nn.Module):
    """What it adds to its tokens it makes anew, on the device of its input; one lies beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.inner, self.head = (
            nn.Conv2d(1, 4, 4, 4),
            nn.Linear(4, 4),
            nn.Linear(4, 5),
        )
        self.table = torch.linspace(0, 1, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.patches(x)).flatten(2).transpose(1, 2) + self.table
        first = torch.zeros(x.shape[0], 1, 4, device=x.device)
        x = torch.cat([first + torch.arange(4, device=x.device), x], 1)
        return self.head((x + self.inner(x)).mean(1))


@pytest.fixture(autouse=True)
def _few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the search for scales: each is many small operations, which take longer here."""
    monkeypatch.setattr(scale_search, "_SHRINKS", 3)


def both(network: Network, x: Tensor, fields: dict[str, Any]) -> tuple[bytes, modcap.Quantized]:
    """The artifact of the CPU, and what the GPU made."""
    fields = {"optimiser": STEPS, "tuning": 2, "k": 0, **fields}
    recipe = Recipe.preset(fields.pop("preset", "paper"), calibration=len(x), **fields)
    here = modcap.quantize(network, x, recipe.on(False), progress=False).artifact
    with pretend_gpu():
        there = modcap.quantize(network, x, recipe, progress=False)
    return here, there


@pytest.mark.parametrize("name", list(RECIPES))
def test_all_that_a_job_makes_lies_where_it_computes(name: str) -> None:
    network, x = small_network()
    here, there = both(network, x[:8], RECIPES[name])
    assert there.artifact == here
    assert there.recipe.device.value == "cuda"  # auto
    tensors = [t for result in there.results.values() for t in result.tensors.values()]
    assert not any(isinstance(tensor, PretendTensor) for tensor in tensors)
    assert {r.meta["environment"]["device"] for r in there.results.values()} == {"cpu", "cuda"}


@pytest.mark.parametrize("capture", ["fx", "export"])
def test_graphs_make_tensors_where_they_run(capture: str) -> None:
    torch.manual_seed(0)
    model: Any = Tokens().eval()
    x = torch.randn(4, 1, 8, 8)
    if capture == "export":
        model = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    network = build(model, x)
    here, there = both(network, x, {"method": "rtn", "tuning": 0})
    assert there.artifact == here


def test_one_output_of_several() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 3, 8), nn.Conv2d(1, 2, 8)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": self.one(x).flatten(1), "b": self.two(x).flatten(1)}

    x = torch.randn(4, 1, 8, 8)
    here, there = both(build(Two().eval(), x), x, {"method": "rtn", "tuning": 0})
    assert there.artifact == here


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x + torch.ones(4),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: torch.cat([x, torch.zeros(4)]),
        lambda x: x + torch.ones_like(x, device="cpu"),
        lambda x: x.numpy(),
    ],
)
def test_it_refuses_what_a_gpu_refuses(wrong: Callable[[Tensor], object]) -> None:
    with pretend_gpu():
        x = torch.arange(4.0, device="cuda")
        assert x.is_cuda
        assert (x * 2 + torch.tensor(1.0)).cpu().tolist() == [1, 3, 5, 7]
        with pytest.raises((RuntimeError, TypeError), match="cuda:0"):
            wrong(x)
