"""The command line on the real servers of a stack: in this process, or as one of its own.

Each command runs as a process of its own somewhere, and wherever a test needs one: to end it, to
run two at once, or because it would end this process. Everything else runs here, where all is
imported and Ray connected: a process needs seconds for its imports, and Ray for workers of it.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest.mock import patch

import torch

import modcap
from modcap.checkpoints import checkpoint
from modcap.checkpoints.published_preprocess import published_preprocess
from modcap.data import sources as data
from modcap.flows import cli

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


def modcap_process(
    environment: dict[str, str], *arguments: str | Path, **others: str
) -> CompletedProcess[str]:
    """Runs ``modcap`` to its end, as a process of its own."""
    process = start(environment, *arguments, **others)
    out, err = process.communicate(timeout=280)
    return CompletedProcess(process.args, process.returncode, out, err)


def modcap_command(
    environment: dict[str, str], *arguments: str | Path, **others: str
) -> CompletedProcess[str]:
    """Runs ``modcap`` to its end, in this process, whose environment is afterwards what it was.

    None that makes the stack start Ray anew, such as one with another S3: who is connected to Ray
    ends with it.
    """
    with within(environment | others) as (out, err):
        code = _exit_code([str(argument) for argument in arguments])
    return CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def within(environment: dict[str, str]) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """What runs within has this environment, and Ray connected; gives what it prints there."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, environment),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.resetwarnings()  # those that pytest makes errors of are lines for who runs it
        connect_ray()
        yield out, err


def _exit_code(arguments: list[str]) -> int:
    """What the process of ``modcap`` would end with."""
    try:
        cli.main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)
    except Exception:
        traceback.print_exc()
        return 1
    raise AssertionError("it returned")


def connect_ray() -> None:
    """To the cluster that the environment names; commands find it connected, and leave it so."""
    import ray

    if not ray.is_initialized():
        ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level=logging.ERROR)


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
    x = images(recipe.calibration, recipe.seed)
    return modcap.quantize(model, x, recipe, preprocess=published_preprocess(ARCH)).artifact
