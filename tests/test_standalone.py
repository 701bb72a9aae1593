"""A registered version stands alone: nothing of ours is installed where it is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from mlflow.models import Model

from modcap.core.serialization import digest
from modcap.export.artifact import unpack_network
from modcap.flows.registry.library import write_library
from modcap.flows.registry.model_files import save_model
from modcap.flows.reports.cell_record import Exported, Finished
from tests.exports import artifact_of
from tests.requirements_alone import link_packages
from tests.test_export import SHAPE, network

LOAD = """
import json, sys
folder, *paths = sys.argv[1:]
sys.path += paths
import mlflow, numpy
model = mlflow.pyfunc.load_model(folder)
logits = model.predict(numpy.ones((2, 3, 9, 10), numpy.float32))
import modcap, importlib.util
servers = [n for n in ("ray", "prefect", "boto3") if importlib.util.find_spec(n)]
print(json.dumps([modcap.__file__, servers, logits.tolist()]))
"""


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a version."""
    artifact = artifact_of(network(), torch.randn(8, *SHAPE), 4, 4)
    finished = SimpleNamespace(
        artifact=artifact,
        artifact_digest=digest(artifact),
        input_shape=SHAPE,
        classes=["a", "b", "c", "d", "e"],
        exports=(Exported("encodings", "encodings/network.encodings.json", b"{}"),),
    )
    folder = tmp_path_factory.mktemp("version") / "model"
    save_model(folder, cast(Finished, finished), Model())
    return folder


def requirements(version: Path) -> list[str]:
    return (version / "requirements.txt").read_text().split()


def loaded(command: list[str], version: Path, *paths: Path) -> list[Any]:
    done = subprocess.run(
        [*command, "-c", LOAD, str(version), *map(str, paths)],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def check(found: list[Any], version: Path) -> None:
    place, servers, logits = found
    assert place.startswith(str(version))
    assert servers == []
    packed = next(version.rglob("network.safetensors")).read_bytes()
    expected = unpack_network(packed)(torch.ones(2, *SHAPE))
    assert np.allclose(logits, expected.numpy(), atol=1e-6)


def test_it_brings_its_library_and_lists_no_package_of_ours(version: Path, tmp_path: Path) -> None:
    names = {line.partition("==")[0] for line in requirements(version)}
    assert names == {"mlflow", "numpy", "pydantic", "safetensors", "torch"}
    assert link_packages(requirements(version), tmp_path) > names
    assert not (tmp_path / "modcap").exists()
    # -I -S: no site-packages, no folder of the caller, no PYTHONPATH
    check(loaded([sys.executable, "-I", "-S"], version, tmp_path), version)


def test_the_library_is_the_same_in_every_version_and_without_servers(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        write_library(tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = archive.namelist()
    rooms = {name.split("/")[1] for name in names}
    assert {"core", "graph", "quantization", "export"} <= rooms
    assert not {"tasks", "flows", "infra"} & rooms


@pytest.mark.fresh
@pytest.mark.timeout(1800)  # pip installs torch
def test_it_loads_and_serves_in_a_fresh_environment(version: Path, tmp_path: Path) -> None:
    """Installed from an index by its own list, as ``mlflow models serve`` does it."""
    python = tmp_path / "bin/python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "-r", "requirements.txt"]
    subprocess.run(install, check=True, cwd=version)
    check(loaded([str(python), "-I"], version), version)
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"inputs": np.ones((2, *SHAPE)).tolist()}))
    predict = ["models", "predict", "-m", str(version), "--env-manager", "local"]
    done = subprocess.run(
        [str(python), "-m", "mlflow", *predict, "-i", str(request), "-t", "json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PATH": str(python.parent)},
    )
    assert len(json.loads(done.stdout.splitlines()[-1])["predictions"]) == 2
