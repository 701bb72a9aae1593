"""Where and as whom it runs: no root, a home folder with spaces, a clone that nobody may write."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.commands import ROOT

pytestmark = pytest.mark.fault

USER = "modcap-plain"
KEPT = ("modcap", "tasks", "flows", "infra", "examples")
RECIPE = {"w_bits": 4, "method": "rtn", "k": 0, "calibration": 32}
NETWORK = "vgg_tiny"


@dataclass
class Plain:
    """A user without any rights but to read, who has a folder of their own."""

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "ein Ort für ∂ten"

    @property
    def clone(self) -> Path:
        return self.folder / "nur lesen"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        others = ("AWS_", "MLFLOW_", "PREFECT_", "RAY_", "MODCAP_", "COV", "XDG_")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(others)}
        own = {"HOME": str(self.home), "USER": USER, "LOGNAME": USER, "PYTHONPATH": str(self.clone)}
        return subprocess.run(
            [*_becoming(), sys.executable, "-m", "modcap.flows.cli", *arguments],
            cwd=self.clone,
            env=environment | own | {"MODCAP_HOME": str(self.home / "mod cap")},
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )


def _becoming() -> list[str]:
    """In front of a command: root becomes a plain user, who still may read where Python lies."""
    if os.getuid():
        return []
    read = "+dac_read_search"
    rights = ["--bounding-set", f"-all,{read}", "--inh-caps", read, "--ambient-caps", read]
    return ["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups", *rights, "--"]


@pytest.fixture
def plain() -> Iterator[Plain]:
    root = os.getuid() == 0
    if root and not (shutil.which("setpriv") and shutil.which("useradd")):
        pytest.skip("root can become no other user here: setpriv and useradd are missing")
    made = Plain(Path(tempfile.mkdtemp(prefix="modcap-plain-")))
    made.folder.chmod(0o755)
    made.home.mkdir()
    made.clone.mkdir()
    for name in KEPT:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, made.clone / name, symlinks=True, ignore=ignored)
    _writable(made.clone, False)
    if root:
        subprocess.run(["useradd", "--no-create-home", USER], check=True)
        shutil.chown(made.home, USER, USER)
    yield made
    made.run("stack", "down")
    if root:
        subprocess.run(["userdel", USER], check=False)
    _writable(made.clone, True)
    shutil.rmtree(made.folder, ignore_errors=True)


def _writable(folder: Path, may: bool) -> None:
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if may else 0o555)


@pytest.mark.timeout(600)
def test_a_plain_user_quantizes_from_a_clone_that_is_not_theirs(plain: Plain) -> None:
    recipe = plain.home / "récipe.json"
    recipe.write_text(json.dumps(RECIPE))
    before = {path: path.stat().st_mtime for path in plain.clone.rglob("*")}
    checkpoint = plain.clone / f"examples/fashion_mnist/checkpoints/{NETWORK}.safetensors"
    done = plain.run(
        *("quantize", "--json", str(checkpoint), "--arch", f"modcap.zoo:{NETWORK}"),
        *("--data", "fashion-mnist", "--eval-images", "100", "--recipe", str(recipe)),
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["model_version"]
    assert {path: path.stat().st_mtime for path in plain.clone.rglob("*")} == before
    if os.getuid() == 0:
        of_others = [p for p in plain.home.rglob("*") if p.lstat().st_uid == 0 and p != recipe]
        assert of_others == []
    down = plain.run("stack", "down")
    assert down.returncode == 0, down.stderr
