"""A version keeps the names of its classes, and the gate numbers images by them."""

from __future__ import annotations

import json
from pathlib import Path

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
    found = modcap_command(stack, "promote", "named", "--data", gate, "--max-drop", "1", "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["top1"] == 100
    write(gate, ("sock",))
    refused = modcap_command(stack, "promote", "named", "--data", gate, "--max-drop", "1")
    assert refused.returncode == 2, refused.stderr
    assert "images of sock" in refused.stderr
