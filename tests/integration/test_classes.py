"""A version keeps the names of its classes, and the gate numbers images by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from tests.integration.commands import modcap_command
from tests.test_classes import NAMES, request, write


def test_a_gate_whose_images_lack_a_class(stack: dict[str, str], tmp_path: Path) -> None:
    train, gate = write(tmp_path / "a", count=20), write(tmp_path / "b", NAMES[1:])
    asked = request(tmp_path, data=str(train))
    recipe = tmp_path / "recipe.json"
    recipe.write_text(asked.recipe.model_dump_json(exclude_defaults=True))
    arch = ["--arch", "tests.test_classes:Brightness", "--preprocess", "mean=0.5,std=0.25"]
    done = modcap_command(
        stack,
        *("quantize", asked.checkpoint, "--data", train, "--recipe", recipe, "--json"),
        *(*arch, "--name", "named", "--w-bits", "8", "--a-bits", "8"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["classes"] == list(NAMES)
    assert report["warnings"] == []
    version = MlflowClient(stack["MLFLOW_TRACKING_URI"]).get_model_version("named", "1")
    assert version.tags["classes_digest"]
    check_pages(stack, report, tmp_path / "page.html")
    found = modcap_command(stack, "promote", "named", "--data", gate, "--max-drop", "1", "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["top1"] == 100
    write(gate, ("sock",))
    refused = modcap_command(stack, "promote", "named", "--data", gate, "--max-drop", "1")
    assert refused.returncode == 2, refused.stderr
    assert "images of sock" in refused.stderr


def check_pages(stack: dict[str, str], report: dict[str, Any], out: Path) -> None:
    """The page that the run logged is the one that its id and its version give, layers included."""
    client = MlflowClient(stack["MLFLOW_TRACKING_URI"])
    logged = Path(client.download_artifacts(report["mlflow_run_id"], "report.html", out.parent))
    page = logged.read_text(encoding="utf-8")
    assert "Use of the levels of weights" in page
    assert all(name in page for name in NAMES)
    assert report["agreement"] == 100
    assert report["per_class"]["images"] == report["per_class"]["hits"]
    for source in (report["mlflow_run_id"], "models:/named@candidate"):
        done = modcap_command(stack, "report", source, "--output", out)
        assert done.returncode == 0, done.stderr
        assert out.read_text(encoding="utf-8") == page
