"""modcap of whatever revision PYTHONPATH names: seconds per step of each group, and a run."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from child import Bench, measured, tolerate_torchvision
from torch import Tensor, nn


def _model(bench: Bench) -> nn.Module:
    """The checkpoint, or a torchvision network with random weights and small images."""
    name = bench.spec.get("torchvision")
    if name is None:
        return bench.model
    tolerate_torchvision()
    from torchvision import models

    bench.images = torch.randn(bench.spec["images"], 3, 64, 64)
    network: nn.Module = getattr(models, name)().eval()
    return network


def quantize(bench: Bench) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    import modcap

    spec, model = bench.spec, _model(bench)
    images = bench.images[: spec["images"]]
    optimiser = {"iterations": spec["steps"], "batch_size": spec["batch"]}
    optimiser |= spec.get("optimiser", {})
    values = {"w_bits": spec["w_bits"], "a_bits": spec["a_bits"], "seed": spec["seed"]}
    more = {"method": spec["method"], "k": 0, "calibration": len(images), "optimiser": optimiser}
    more |= spec.get("fields", {})
    if not spec["tests"]:  # timed is what grows with modules and images
        more["schedule"] = "sequential"
        if "tuning" in modcap.Recipe.model_fields:
            more["tuning"] = 0
    times: dict[str, list[tuple[int, float]]] = defaultdict(list)
    taken: dict[str, int] = {}

    def clock(job: Any, step: int, steps: int, loss: float) -> None:
        times[job.key].append((step, time.perf_counter()))
        taken[job.key] = steps

    start = time.perf_counter()
    done = modcap.quantize(model, images, modcap.Recipe.preset("quick", **values, **more), clock)
    seconds = time.perf_counter() - start
    steps = [(t[-1][1] - t[0][1]) / (t[-1][0] - t[0][0]) for t in times.values()]
    layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())
    return done.network, {
        "quantize_seconds": round(seconds, 2),
        "steps": sum(taken.values()),
        "modules": list(done.modules),
        "layers": layers,
        "seconds_per_step": steps,
        "seconds_per_step_sum": sum(steps),
    }


if __name__ == "__main__":
    measured("", quantize)
