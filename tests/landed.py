"""Makes tests/data/landed.zip: a store and a registry as an earlier version leaves them.

    python tests/landed.py FOLDER_OF_THAT_VERSION

Runs that version's command line on a local stack of its own, on one small network, and keeps the
objects of the store and MLflow's database. The test of upgrades reads them with this version.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

DATA = Path(__file__).parent / "data"
PREPROCESS = "mean=0.286,std=0.353"
OPTIONS = (
    *("--preprocess", PREPROCESS),
    *("--arch", "factory:tiny", "--name", "landed", "--no-compare", "--eval-images", "100"),
    *("--data", "fashion-mnist", "--calibration", "32", "--method", "brecq", "--k", "0"),
    *("--iterations", "5", "--w-bits", "4", "--a-bits", "8"),
)
FACTORY = """
import torch

def tiny():
    torch.manual_seed(0)
    relu, flat = torch.nn.ReLU(), torch.nn.Flatten()
    first, second = torch.nn.Conv2d(1, 4, 3, stride=4), torch.nn.Conv2d(4, 6, 3, stride=2)
    return torch.nn.Sequential(first, relu, second, torch.nn.ReLU(), flat, torch.nn.Linear(54, 10))
"""
_LIST = """
import sys
from pathlib import Path
import boto3
s3 = boto3.client("s3")
for page in s3.get_paginator("list_objects_v2").paginate(Bucket="modcap"):
    for found in page.get("Contents", []):
        file = Path(sys.argv[1], found["Key"])
        if found["Key"].startswith(("jobs/", "inputs/", "artifacts/")):
            file.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file("modcap", found["Key"], str(file))
"""


def main(version: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="modcap-landed-") as name:
        folder = Path(name)
        (folder / "factory.py").write_text(FACTORY)
        own = {"PYTHONPATH": f"{version}:{folder}", "MODCAP_HOME": f"{folder}/home"}
        environment = os.environ | own

        def run(*words: str | Path) -> str:
            done = [sys.executable, *map(str, words)]
            return subprocess.run(
                done, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True, check=True
            ).stdout

        save = "import torch, factory; from safetensors.torch import save_file as s; "
        run("-c", save + "s(factory.tiny().state_dict(), 'net.safetensors')")
        command = ("-m", "modcap.flows.cli")
        try:
            said = json.loads(run(*command, "quantize", "net.safetensors", *OPTIONS, "--json"))
            listing = ("--", sys.executable, "-c", _LIST, folder / "kept")
            run(*command, "stack", "run", *listing)
        finally:
            run(*command, "stack", "down")
        keep = {name: said[name] for name in ("artifact_digest", "jobs", "model_version", "top1")}
        with zipfile.ZipFile(DATA / "landed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("report.json", json.dumps(keep, indent=1))
            archive.write(folder / "home/mlflow/mlflow.db", "mlflow.db")
            archive.write(folder / "net.safetensors", "net.safetensors")
            for file in sorted((folder / "kept").rglob("*")):
                if file.is_file():
                    archive.write(file, f"store/{file.relative_to(folder / 'kept')}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
