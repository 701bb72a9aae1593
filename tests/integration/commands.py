"""The command line as a process of its own, on the real servers of a stack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import modcap
from modcap.checkpoints import checkpoint
from modcap.checkpoints.published_preprocess import published_preprocess
from modcap.data import sources as data

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "examples/fashion_mnist/checkpoints/resnet18_narrow.safetensors"
ARCH = "modcap.zoo:resnet18_narrow"


def start(
    environment: dict[str, str], *arguments: str | Path, **others: str
) -> subprocess.Popen[str]:
    """``modcap`` with these arguments, started in a session of its own."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    return subprocess.Popen(
        [sys.executable, "-m", "modcap.flows.cli", *map(str, arguments)],
        env=own | environment | {"PYTHONPATH": str(ROOT)} | others,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def modcap_command(
    environment: dict[str, str], *arguments: str | Path, **others: str
) -> subprocess.CompletedProcess[str]:
    """Runs ``modcap`` to its end."""
    process = start(environment, *arguments, **others)
    out, err = process.communicate(timeout=280)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def sweep_arguments(folder: Path, recipe: dict[str, Any], *flags: str) -> list[str]:
    """``modcap sweep --json`` of the shipped ResNet, by a recipe file in ``folder``."""
    file = folder / "recipe.json"
    file.write_text(json.dumps(recipe))
    return [
        *("sweep", "--json", "--checkpoint", str(CHECKPOINT), "--arch", ARCH),
        *("--data", "fashion-mnist", "--eval-images", "300", "--recipe", str(file), *flags),
    ]


def images(calibration: int, seed: int) -> torch.Tensor:
    """The calibration images that a run with this seed chooses."""
    preprocess = published_preprocess(ARCH)
    pool = data.load("fashion-mnist", split="calibration", preprocess=preprocess)
    return preprocess.normalize(data.calibration(pool, calibration, seed).images)


def alone(recipe: modcap.Recipe) -> bytes:
    """The artifact of one cell, made by the library in this process."""
    model = checkpoint.load(CHECKPOINT, ARCH).model
    return modcap.quantize(model, images(recipe.calibration, recipe.seed), recipe).artifact
