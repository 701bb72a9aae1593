"""A small network, recipes over it, and the keys and bytes that they give."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

import modcap
from modcap.core.serialization import Result
from modcap.data.image_set import ImageSet
from modcap.graph.network import Network, build
from modcap.jobs.job import Cell
from modcap.jobs.plan import plan
from modcap.recipe import Recipe

__all__ = ["KEYS", "QUANTIZED", "job_keys", "quantized", "small_network"]

_IMAGES = 32
_BATCH = {"batch_size": 8}

KEYS: dict[str, dict[str, Any]] = {
    "paper": {},
    "brecq": {"method": "brecq"},
    "adaround": {"method": "adaround", "w_bits": 2},
    "rtn": {"method": "rtn", "k": 0},
    "quick": {"preset": "quick", "k": 0},
    "data-dependent": {"preset": "quick", "capacity": "data-dependent", "k": 1},
    "random": {"selection": "random", "k": 1},
    "logarithms": {"capacity_scale": "log", "homogeneity": "any", "k": 2},
    "explicit": {"selection": "explicit", "groups": [["2", "3"]]},
    "cuda": {"device": "cuda", "k": 1},
}
"""Recipes whose job keys are kept; fields over a preset."""

QUANTIZED: dict[str, dict[str, Any]] = {
    "rtn": {"method": "rtn", "k": 0},
    "qdrop": {"k": 1, "optimiser": {"iterations": 12, **_BATCH}},
    "quick": {
        **{"preset": "quick", "k": 1, "w_bits": 2, "a_bits": 4},
        "optimiser": {"iterations": 10, **_BATCH},
    },
    "quick, automatic k": {
        **{"preset": "quick", "schedule": "sequential", "w_bits": 3},
        "optimiser": {"iterations": 6, **_BATCH},
    },
    "adaround": {"method": "adaround", "k": 1, "optimiser": {"iterations": 8, **_BATCH}},
    "brecq": {
        **{"method": "brecq", "k": 2, "homogeneity": "any", "w_bits": 2},
        "optimiser": {"iterations": 8, **_BATCH},
    },
}
"""Recipes whose integers are kept."""


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.two = nn.Conv2d(outputs, outputs, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.two(torch.relu(self.one(x))))


def small_network() -> tuple[Network, Tensor]:
    """Five modules over 8 × 8 pixels with weights that are the same everywhere, and its images."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()),
        *(Block(4, 6, 1), Block(6, 6, 1), Block(6, 8, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                drawn = torch.randint(-64, 65, weight.shape, generator=generator)
                weight.copy_(drawn / 64 / max(1, weight[0].numel()) ** 0.5)
            else:
                weight.zero_()
    images = torch.randint(0, 256, (_IMAGES, 1, 8, 8), generator=torch.Generator().manual_seed(6))
    return build(model.eval(), images[:2] / 256), images / 256


def _recipe(fields: dict[str, Any]) -> Recipe:
    fields = dict(fields)
    return Recipe.preset(fields.pop("preset", "paper"), calibration=_IMAGES, **fields)


def job_keys(name: str) -> dict[str, str]:
    """Label to key, of every job of a recipe of :data:`KEYS`; modules 1 and 2 are joined."""
    network, x = small_network()
    images = ImageSet(x, torch.zeros(_IMAGES, dtype=torch.int64), (0.0,), (1.0,))
    cell = Cell(network, images.digest, images.digest, _recipe(KEYS[name]))
    select = plan([cell], lambda _: None).cells[0].select
    known = {select: Result(meta={"groups": [[0, 1], [1, 3], [3, 4], [4, 5]]})}
    return {job.label: job.key for job in plan([cell], known.get).jobs}


def quantized(name: str) -> tuple[str, str]:
    """sha256 of the integers of a recipe of :data:`QUANTIZED`, and of its whole artifact."""
    network, x = small_network()
    artifact = modcap.quantize(network, x, _recipe(QUANTIZED[name])).artifact
    tensors = load(artifact)
    hasher = hashlib.sha256()
    for tensor in sorted(name for name in tensors if name.endswith("integers")):
        hasher.update(tensor.encode() + tensors[tensor].numpy().tobytes())
    return hasher.hexdigest(), hashlib.sha256(artifact).hexdigest()
