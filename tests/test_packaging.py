"""What an installation puts beside the packages of others: one name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.rooms import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing of an earlier build is in it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("modcap", "tasks", "flows", "infra"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    (made,) = folder.glob("modcap-*.whl")
    return made


def test_a_wheel_holds_one_name_and_all_modules(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"modcap"}
    for module in (
        "modcap/api/__init__.py",
        "modcap/tasks/storage/store.py",
        "modcap/flows/cli/__main__.py",
    ):
        assert module in names
    assert "modcap/infra/local/services.py" in names
    assert "modcap/flows/reports/templates/run.html" in names


def test_an_editable_install_shows_one_name() -> None:
    code = (
        "import modcap.flows, sys\nfor n in ('flows', 'tasks', 'infra', 'tests', 'benchmarks'):\n"
    )
    code += "    try: __import__(n)\n    except ModuleNotFoundError: continue\n    print(n)"
    shown = run_python(code, Path("/"))
    assert shown == ""


def run_python(code: str, folder: Path, path: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_folders_and_files_of_the_user_hide_nothing(tmp_path: Path) -> None:
    """A Prefect project has flows/ and tasks.py of its own; a factory from there is found."""
    for name in ("flows", "infra"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not yours')")
    (tmp_path / "tasks.py").write_text("raise SystemExit('not yours')")
    (tmp_path / "nets.py").write_text(
        "from modcap import zoo\nfrom modcap.data.preprocess import Preprocess\n"
        "PREPROCESS = Preprocess(mean=(0.286,), std=(0.353,))\n"
        "def make(): return zoo.vgg_tiny()\n"
    )
    checkpoint = ROOT / "examples/fashion_mnist/checkpoints/vgg_tiny.safetensors"
    command = [sys.executable, "-m", "modcap.flows.cli", "capacity", str(checkpoint)]
    command += ["--arch", "nets:make", "--data", "fashion-mnist", "--json"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"capacities"' in done.stdout
