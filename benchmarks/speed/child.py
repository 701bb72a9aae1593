"""What every measured process shares: one thread, the same inputs, one JSON line at the end.

A child is started as ``python FILE SPEC`` with SPEC as JSON: ``inputs`` (folder), ``network``,
``images`` and ``tests`` (how many), ``w_bits``, ``a_bits``, ``steps``, ``batch``, ``seed``.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import load  # the folder of this file is on the path of a child
from torch import Tensor, nn

__all__ = ["Bench", "measured", "tolerate_torchvision"]

_libraries: list[torch.library.Library] = []


def tolerate_torchvision() -> None:
    """Declares what PyPI's torchvision lacks beside a CPU torch, so that it can be imported."""
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        return
    except RuntimeError:
        for name in [n for n in sys.modules if n.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float t) -> Tensor")
        _libraries.append(library)


class Bench:
    """The inputs of one measurement, and its clock."""

    def __init__(self, spec: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(spec["seed"])
        self.spec = spec
        folder = Path(spec["inputs"])
        self.model = load(spec["network"], folder / f"{spec['network']}.pt")
        self.images = torch.from_numpy(np.load(folder / "calibration.npy")[: spec["images"]])
        self.tests = np.load(folder / "tests.npy", mmap_mode="r")[: spec["tests"]]
        self.labels = np.load(folder / "labels.npy")

    def batches(self, size: int | None = None) -> Iterator[Tensor]:
        """The calibration images in their order."""
        yield from self.images.split(size or self.spec["batch"])

    @torch.no_grad()
    def top1(self, network: Callable[[Tensor], Tensor]) -> float:
        """Per cent of the test images."""
        right = 0
        for start in range(0, len(self.tests), 250):
            logits = network(torch.from_numpy(self.tests[start : start + 250].copy()))
            right += int((logits.argmax(1).numpy() == self.labels[start : start + 250]).sum())
        return 100 * right / len(self.tests)


def peak_mb() -> float:
    """The most memory this process ever held, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


class _Watch(threading.Thread):
    """Looks every tenth of a second how much memory that lies in no file this process holds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0

    def run(self) -> None:
        status = Path("/proc/self/status")
        while status.exists():
            line = next(x for x in status.read_text().splitlines() if x.startswith("RssAnon"))
            self.peak = max(self.peak, int(line.split()[1]) * 1024 / 1e6)
            time.sleep(0.1)


def measured(
    package: str, quantize: Callable[[Bench], tuple[Callable[[Tensor], Tensor], dict[str, Any]]]
) -> None:
    """Runs ``quantize`` once under the clock, then tests its network, and prints the row."""
    bench = Bench(json.loads(sys.argv[1]))
    before, watch = peak_mb(), _Watch()
    watch.start()
    start, cpu = time.perf_counter(), time.process_time()
    network, more = quantize(bench)
    row = {
        "version": version(package) if package else "",
        "tests": bench.spec["tests"],
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_mb": round(peak_mb()),
        "peak_mb_before": round(before),
        "peak_anonymous_mb": round(watch.peak),
    }
    if isinstance(network, nn.Module):
        network.eval()
    row["top1"] = round(bench.top1(network), 2) if bench.spec["tests"] else None
    print(json.dumps({**row, **more}), flush=True)
    os._exit(0)  # whatever threads a peer left behind
