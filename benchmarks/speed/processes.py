"""Measured processes: their inputs, their environments, and their one line of JSON."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.places import CHECKPOINTS, HOME, ROOT

__all__ = ["PEERS", "install", "revision", "run", "write_inputs"]

HERE = Path(__file__).parent
INPUTS = HOME / "speed" / "inputs"
PEERS = {
    "mct": ("model-compression-toolkit",),
    "aimet": ("aimet-torch",),
    "nncf": ("nncf",),
}
TORCH, TORCHVISION = "torch==2.13.0", "torchvision==0.28.0"


def write_inputs(networks: list[str]) -> None:
    """The calibration pool, the test images, normalised, and the checkpoints, for all alike."""
    import numpy as np
    import torch
    from safetensors.torch import load_file

    from modcap.checkpoints.published_preprocess import published_preprocess
    from modcap.data import sources as data
    from modcap.data.image_set import ImageSet

    INPUTS.mkdir(parents=True, exist_ok=True)
    p = published_preprocess("modcap.zoo:resnet18_narrow")
    pool = data.load("fashion-mnist", split="calibration", preprocess=p)
    count = min(2048, len(pool))
    chosen = data.calibration(pool, count, seed=0)
    tests = data.load("fashion-mnist", split="evaluation", preprocess=p)
    for name, some in (("calibration", chosen), ("tests", tests)):
        held = ImageSet(torch.tensor(some.images), torch.tensor(some.labels), p.mean, p.std)
        np.save(INPUTS / f"{name}.npy", held.normalized().numpy())
    np.save(INPUTS / "labels.npy", tests.labels)
    for name in networks:
        torch.save(load_file(CHECKPOINTS / f"{name}.safetensors"), INPUTS / f"{name}.pt")


def install(peer: str) -> str:
    """Makes the peer's own environment; ``works``, or the reason why not in one line."""
    folder = HOME / "peers" / peer
    mark = folder / "installed"
    if mark.exists():
        return "works"
    pip = ["pip", "install", "--python", str(folder)]
    steps = [
        ["venv", "--clear", "--python", sys.executable, str(folder)],
        [*pip, TORCH, *PEERS[peer]],
        [*pip, "--no-deps", TORCHVISION],  # read by two of the peers at import, never used
    ]
    links = ",".join(os.environ.get("PIP_FIND_LINKS", "").split())  # what pip is told, uv is told
    environment = {"UV_FIND_LINKS": links, **os.environ}
    for step in steps:
        command = [sys.executable, "-m", "uv", "--quiet", *step]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            return f"install fails: {_last_line(done.stderr)}"
    mark.touch()
    return "works"


def _last_line(text: str) -> str:
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return lines[-1].replace(str(ROOT), ".") if lines else "no message"


@cache
def revision(name: str) -> Path | None:
    """A folder with ``modcap/`` as committed in ``name``; None where this clone lacks it."""
    archive = subprocess.run(["git", "archive", name, "modcap"], cwd=ROOT, capture_output=True)
    if archive.returncode:
        return None
    folder = Path(tempfile.mkdtemp(prefix="modcap-speed-"))
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def run(who: str, limit: float, source: str = "", **spec: Any) -> dict[str, Any]:
    """One process of ``who`` (``modcap``, as committed in ``source``, or a peer); its row, or
    ``{"error": one line}``."""
    if who in PEERS and (state := install(who)) != "works":
        return {"error": state}
    python = sys.executable if who == "modcap" else str(HOME / "peers" / who / "bin/python")
    threads = {f"{n}_NUM_THREADS": "1" for n in ("OMP", "MKL", "OPENBLAS")}
    environment = {**os.environ, **threads}
    if source:
        folder = revision(source)
        if folder is None:
            return {"error": f"{source} is not in this clone: fetch its whole history"}
        environment["PYTHONPATH"] = str(folder)
    command = [
        python,
        str(HERE / f"peers/with_{who}.py"),
        json.dumps({**spec, "inputs": str(INPUTS)}),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {limit:.0f} s"}
    if done.returncode:
        return {"error": _last_line(done.stderr)}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row
