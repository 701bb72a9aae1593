"""Sweeps on real servers: one plan, each job once, every cell as if it were alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import modcap
from modcap.core.serialization import Result
from modcap.tasks.storage.store import Store
from tests.integration.commands import alone, modcap_command, modcap_process, start, sweep_arguments

SMALL: dict[str, Any] = {
    "scale_exponent": 2.0,  # found in half the time
    "calibration": 48,
    "optimiser": {"iterations": 3, "batch_size": 16},
    "homogeneity": "any",
    "schedule": "waves",
    "path_share": 0,
}
EXPORTS = ("--export", "pt2")
GRID = ("--w-bits", "2,3", "--a-bits", "4", "--k", "0-2")


def cells_of(client: MlflowClient, parent: str) -> list[Any]:
    run = client.get_run(parent)
    found = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    return list(found)


@pytest.fixture(scope="module")
def report(stack: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    arguments = sweep_arguments(tmp_path_factory.mktemp("sweep"), SMALL, *GRID, *EXPORTS)
    done = modcap_command(stack, *arguments, MODCAP_PREFIX="sweep")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_distinct_reconstructions_run_once(report: dict[str, Any]) -> None:
    shared = report["reconstructions"]
    # 10 modules; per bit-width 10 groups at k=0 and one more for each further k; the edges are
    # equal for both, and joined groups that hold no edge are not
    assert shared["independent"] == 2 * (10 + 9 + 8)
    assert shared["distinct"] <= 2 * 12
    assert report["jobs"]["executed"] == report["jobs"]["planned"]


def test_every_cell_is_what_it_is_alone(report: dict[str, Any]) -> None:
    for cell in (report["cells"][1], report["cells"][5]):
        recipe = modcap.Recipe.model_validate(cell["recipe"])
        assert cell["artifact_digest"] == hashlib.sha256(alone(recipe)).hexdigest()


def test_same_sweep_again_adds_nothing(
    stack: dict[str, str], report: dict[str, Any], tmp_path: Path
) -> None:
    client = MlflowClient(stack["MLFLOW_TRACKING_URI"])
    before = len(client.search_model_versions("name like 'resnet18_narrow-w%'"))
    arguments = sweep_arguments(tmp_path, SMALL, *GRID, *EXPORTS)
    again = json.loads(modcap_command(stack, *arguments, MODCAP_PREFIX="sweep").stdout)
    assert again["jobs"]["executed"] == 0
    assert again["mlflow_run_id"] == report["mlflow_run_id"]
    runs = [cell["mlflow_run_id"] for cell in again["cells"]]
    assert runs == [cell["mlflow_run_id"] for cell in report["cells"]]
    assert len(client.search_model_versions("name like 'resnet18_narrow-w%'")) == before


def test_cells_are_nested_and_the_best_is_registered(
    stack: dict[str, str], report: dict[str, Any]
) -> None:
    client = MlflowClient(stack["MLFLOW_TRACKING_URI"])
    parent = report["mlflow_run_id"]
    assert len(cells_of(client, parent)) == 6
    plots = {file.path for file in client.list_artifacts(parent, "plots")}
    assert plots == {"plots/pareto.png", "plots/heat_map-resnet18_narrow.png"}
    best = max(report["cells"], key=lambda cell: (cell["top1"], -cell["artifact_bytes"]))
    assert report["best"] == {"resnet18_narrow": best["name"]}
    version = client.get_model_version(best["model_name"], best["model_version"])
    assert version.run_id == best["mlflow_run_id"]
    assert version.tags["pt2"] == "pt2/network.pt2"
    assert [len(cell["exports"]) for cell in report["cells"]] == [
        int(cell is best) for cell in report["cells"]
    ]
    assert [cell["name"] for cell in report["cells"] if "model_version" in cell] == [best["name"]]


def test_no_cell_fits_is_a_refusal(
    stack: dict[str, str], report: dict[str, Any], tmp_path: Path
) -> None:
    arguments = sweep_arguments(tmp_path, SMALL, *GRID, "--max-bytes", "1000")
    done = modcap_command(stack, *arguments, MODCAP_PREFIX="sweep")
    assert done.returncode == 3
    assert "no cell of resnet18_narrow meets" in done.stderr.splitlines()[-1]
    refused = json.loads(done.stdout)
    assert refused["best"] == {"resnet18_narrow": None}
    assert len(refused["cells"]) == len(report["cells"])


def test_a_run_that_another_host_took_for_abandoned_comes_back(
    stack: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from modcap.flows.registry.mlflow_runs import finish_parent, start_parent

    for name, value in stack.items():
        monkeypatch.setenv(name, value)
    client = MlflowClient(stack["MLFLOW_TRACKING_URI"])
    own = start_parent("modcap", "a long sweep", "abandoned")
    client.delete_run(own.run_id)
    done = finish_parent("modcap", own, {"cells": 1}, lambda folder: None, [])
    run = client.get_run(done.run_id)
    assert done.run_id == own.run_id
    assert (run.info.lifecycle_stage, run.info.status) == ("active", "FINISHED")


def test_two_at_once_make_one(stack: dict[str, str], tmp_path: Path) -> None:
    arguments = sweep_arguments(tmp_path, SMALL, "--w-bits", "4", "--k", "0,auto", "--seeds", "7")
    both = [start(stack, *arguments, MODCAP_PREFIX="twice") for _ in range(2)]
    ended = [process.communicate(timeout=280) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    first, second = (json.loads(out) for out, _ in ended)
    assert first["mlflow_run_id"] == second["mlflow_run_id"]
    client = MlflowClient(stack["MLFLOW_TRACKING_URI"])
    assert len(cells_of(client, first["mlflow_run_id"])) == 2
    for name in ("artifact_digest", "mlflow_run_id"):
        assert [c[name] for c in first["cells"]] == [c[name] for c in second["cells"]]
    key = "modcap.publish_key"
    versions = client.search_model_versions("name like 'resnet18_narrow-w%'")
    assert len({v.tags[key] for v in versions}) == len(versions)


def test_plan_knows_what_is_done(
    stack: dict[str, str], report: dict[str, Any], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(SMALL))
    flags = [*sweep_arguments(tmp_path, SMALL)[2:6], "--data", "fashion-mnist"]
    shown = modcap_process(
        stack,
        *("plan", "--json", *flags, "--recipe", recipe, "--w-bits", "2,3,4", "--a-bits", "4"),
        *("--k", "0-2", "--workers", "4", "--picture", tmp_path / "plan.png"),
        MODCAP_PREFIX="sweep",
    )
    assert shown.returncode == 0, shown.stderr
    said = json.loads(shown.stdout)
    reconstructs = said["jobs"]["reconstruct"]
    assert reconstructs["done"] == report["reconstructions"]["distinct"]
    assert reconstructs["planned"] > reconstructs["done"]
    assert not said["open"]
    assert said["seconds"] <= said["seconds_on_one"]
    assert (tmp_path / "plan.png").read_bytes()[:4] == b"\x89PNG"


def test_garbage_is_what_nothing_registered_needs(
    stack: dict[str, str], report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in stack.items():
        monkeypatch.setenv(name, value)
    store = Store(stack["MODCAP_BUCKET"], "sweep", stack["AWS_ENDPOINT_URL_S3"])
    before = set(store.keys())

    def gc(*flags: str) -> dict[str, Any]:
        done = modcap_command(stack, "store", "gc", "--json", *flags, MODCAP_PREFIX="sweep")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    elsewhere = Store(store.bucket, "sweep-elsewhere", store.endpoint)
    elsewhere.put("k", Result(meta={}))  # nothing in MLflow comes from there: is it the right one?
    done = modcap_command(
        stack, *("store", "gc", "--older-than", "0s"), MODCAP_PREFIX="sweep-elsewhere"
    )
    assert done.returncode == 2
    assert "check MLFLOW_TRACKING_URI" in done.stderr
    assert list(elsewhere.keys()) == ["k"]
    forced = ("store", "gc", "--older-than", "0s", "--force")
    assert modcap_process(stack, *forced, MODCAP_PREFIX="sweep-elsewhere").returncode == 0
    assert list(elsewhere.keys()) == []
    assert gc("--older-than", "1d")["removed"]["jobs"] == 0
    would = gc("--older-than", "0s", "--dry-run")["removed"]
    assert 0 < would["jobs"] < len(before)
    assert set(store.keys()) == before
    assert gc("--older-than", "0s")["removed"] == would
    # what the registered cell was made from is still there: its groups, capacities, selection
    left = set(store.keys())
    kinds = {(store.meta(key) or {}).get("kind") for key in left}
    made = {"capacity", "select", "reconstruct", "correct", "tune", "assemble", "evaluate"}
    assert kinds == made | {"export"}
    verified = modcap_process(stack, "store", "verify", "--json", MODCAP_PREFIX="sweep")
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["damaged"] == []
