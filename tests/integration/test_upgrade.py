"""A store and a registry that an earlier version left (tests/landed.py) are read by this one."""

from __future__ import annotations

import json
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from modcap.core.serialization import digest
from modcap.export.artifact import unpack_network
from modcap.flows.registry.retention import collect_garbage, registered
from modcap.flows.requests.asked import Request
from modcap.flows.requests.request import prepare
from modcap.jobs.plan import plan
from modcap.recipe import Recipe
from modcap.tasks.storage.store import Store
from tests import landed

FILE = Path(__file__).parents[1] / "data/landed.zip"


class Left(NamedTuple):
    store: Store
    report: dict[str, Any]
    checkpoint: Path


@pytest.fixture
def left(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Left:
    """Its objects in a store, its registry behind MLFLOW_TRACKING_URI."""
    with zipfile.ZipFile(FILE) as archive:
        archive.extractall(tmp_path)
    for file in (tmp_path / "store").rglob("*"):
        if file.is_file():
            store.put_document(str(file.relative_to(tmp_path / "store")), file.read_bytes())
    (tmp_path / "factory.py").write_text(landed.FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    report = json.loads((tmp_path / "report.json").read_text())
    return Left(store, report, tmp_path / "net.safetensors")


def test_nothing_is_computed_again(left: Left) -> None:
    assert list(left.store.verify()) == []
    recipe = {"method": "brecq", "w_bits": 4, "a_bits": 8, "k": 0, "calibration": 32}
    request = Request(
        checkpoint=str(left.checkpoint),
        arch="factory:tiny",
        data="fashion-mnist",
        preprocess=landed.PREPROCESS,
        eval_images=100,
        recipe=Recipe.preset("quick", **recipe, optimiser={"iterations": 5}),
    )
    found = plan([prepare(request).cell], left.store.get)
    keys = {job.key for job in found.jobs}
    assert len(keys) == left.report["jobs"]["planned"]
    assert left.store.done(keys) == keys


def test_its_versions_are_known_and_keep_what_they_need(left: Left) -> None:
    jobs, artifacts = registered()
    assert artifacts == {left.report["artifact_digest"]}
    assert left.store.done(jobs) == jobs
    kept = collect_garbage(left.store, timedelta(0), dry_run=True)["kept"]
    assert kept["artifacts"] == 1
    assert kept["jobs"] >= len(jobs)


def test_its_artifact_is_read(left: Left) -> None:
    name = left.report["artifact_digest"]
    document = left.store.get_document(f"artifacts/{name}.safetensors")
    assert document is not None
    assert digest(document[0]) == name
    with torch.no_grad():
        assert unpack_network(document[0])(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
