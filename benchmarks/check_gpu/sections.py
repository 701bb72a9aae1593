"""The parts of the check, each a function of its own that may fail alone."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from safetensors.torch import load
from torch import nn

from benchmarks.check_gpu.measured_jobs import run_measured, synchronized_seconds
from benchmarks.check_gpu.subject import LARGE, SMALL, Asked, Subject
from benchmarks.places import ROOT
from modcap.api import quantize
from modcap.checkpoints import _torchvision

__all__ = ["SECTIONS", "Section"]

Figures = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """What it measures, and the seconds that it may take."""

    run: Callable[[Asked], Figures]
    seconds: int


def _environment(asked: Asked) -> Figures:
    said: Figures = {"python": platform.python_version(), "torch": torch.__version__}
    if asked.device == "cuda":
        card = torch.cuda.get_device_properties(0)
        said |= {"gpu": card.name, "gpu_bytes": card.total_memory, "cuda": torch.version.cuda}
        said |= {"free_bytes": torch.cuda.mem_get_info()[0]}
    return said


def _tests(asked: Asked) -> Figures:
    """The tests that need a GPU; the last line says how many passed."""
    command = [sys.executable, "-m", "pytest", "tests/test_gpu.py", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or [done.stderr[-500:]]
    if done.returncode:
        raise RuntimeError("\n".join(lines[-40:]))
    return {"said": lines[-1]}


def _equal(asked: Asked) -> Figures:
    """How near the results of the device are to those of the CPU."""
    found: Figures = {}
    for name in SMALL[: 1 if asked.quick else None]:
        subject = Subject.made(name, asked, 128)
        made = {
            device: quantize(
                subject.network,
                subject.images.normalized(0, len(subject.images)),
                subject.recipe(device, asked, k=1, w_bits=4),
                progress=False,
            )
            for device in ("cpu", asked.device)
        }
        here, there = made["cpu"], made[asked.device]
        same = {n: t == load(here.artifact)[n] for n, t in load(there.artifact).items()}
        integers = [t.float().mean() for n, t in same.items() if n.endswith("integers")]
        found[name] = {
            "equal_integers": float(torch.stack(integers).mean()),
            "groups_equal": here.groups == there.groups,
            "final_error_cpu": here.losses[-1],
            "final_error": there.losses[-1],
        }
        if not there.losses[-1] < 1.5 * here.losses[-1] or here.groups != there.groups:
            raise RuntimeError(f"{name} differs from the CPU: {found[name]}")
    return found


_REPEATED = [*((name, 128) for name in SMALL), ("resnet18", 64)]
"""Networks, and images; the last one has a maximum over overlapping windows."""


def _determinism(asked: Asked) -> Figures:
    """The same bytes twice in one process, and the digests, which another one must give again."""
    digests = {}
    for name, count in [(SMALL[0], 32)] if asked.quick else _REPEATED:
        subject = Subject.made(name, asked, count)
        x = subject.images.normalized(0, len(subject.images))
        recipe = subject.recipe(asked.device, asked, k=1, tuning=20)
        twice = [quantize(subject.network, x, recipe, progress=False).artifact for _ in range(2)]
        if twice[0] != twice[1]:
            raise RuntimeError(f"{name}: the same job gave other bytes the second time")
        digests[name] = hashlib.sha256(twice[0]).hexdigest()
    return digests


def _run(name: str, asked: Asked) -> Figures:
    """A whole run of the quick preset: seconds of all jobs, and memory beside what they ask for."""
    subject = Subject.made(name, asked)
    _warm(asked)
    start = time.perf_counter()
    _, rows = run_measured(subject, subject.recipe(asked.device, asked, k=asked.steps.get("k", 0)))
    whole = synchronized_seconds(asked.device, start)
    return {"images": len(subject.images), "seconds": whole, "jobs": rows}


def _warm(asked: Asked) -> None:
    """Lets libraries load before time counts."""
    if asked.device == "cuda":
        x = torch.randn(8, 8, 16, 16, device="cuda", requires_grad=True)
        nn.Conv2d(8, 8, 3).cuda()(x).square().sum().backward()
        torch.cuda.synchronize()


def _formats(asked: Asked) -> Figures:
    """Milliseconds of a pass with gradients over 32 images: channels first and last, in float32;
    last in bfloat16."""
    found: Figures = {}
    shape = (4, 3, 32, 32) if asked.quick else (32, 3, 224, 224)
    for name in LARGE[1 if asked.quick else 0 : 2 if asked.quick else None]:
        model = getattr(_torchvision.models(), name)().eval().to(asked.device)
        x = torch.randn(shape, device=asked.device)
        last = x.contiguous(memory_format=torch.channels_last)
        for label, images, half in (
            ("first", x, False),
            ("last", last, False),
            ("half", last, True),
        ):
            if label == "last":
                model = model.to(memory_format=torch.channels_last)
            found.setdefault(name, {})[label] = _milliseconds(model, images, half, asked)
    return found


def _milliseconds(model: nn.Module, x: torch.Tensor, half: bool, asked: Asked) -> float:
    runs = 2 if asked.quick else 8
    start = 0.0
    for run in range(runs + 1):
        if run == 1:  # the first one loads kernels
            synchronized_seconds(asked.device, 0)
            start = time.perf_counter()
        with torch.autocast(asked.device, dtype=torch.bfloat16, enabled=half):
            model(x).float().square().mean().backward()
    return round(1000 * synchronized_seconds(asked.device, start) / runs, 2)


def _ray(asked: Asked) -> Figures:
    from benchmarks.check_gpu.on_ray import run_on_ray

    return run_on_ray(asked)


def _shares(asked: Asked) -> Figures:
    from benchmarks.check_gpu.on_ray import two_at_once

    return two_at_once(asked)


SECTIONS: dict[str, Section] = {
    "environment": Section(_environment, 60),
    "equal": Section(_equal, 60),
    "determinism": Section(_determinism, 60),
    "resnet50": Section(partial(_run, "resnet50"), 180),
    "again": Section(_determinism, 60),
    "tests": Section(_tests, 90),
    "ray": Section(_ray, 120),
    "resnet18": Section(partial(_run, "resnet18"), 90),
    "mobilenet_v2": Section(partial(_run, "mobilenet_v2"), 120),
    "shares": Section(_shares, 90),
    "formats": Section(_formats, 60),
}
"""In the order of what is worth most, should time run out; ``again`` is ``determinism`` in another
process."""
