"""The main job on real servers: S3, MLflow, Prefect and Ray, from the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

import modcap
from modcap.checkpoints import checkpoint
from modcap.checkpoints.published_preprocess import published_preprocess
from modcap.tasks.storage.objects import fetch
from modcap.tasks.storage.store import Store
from tests.integration.commands import (
    ARCH,
    CHECKPOINT,
    ROOT,
    images,
    modcap_command,
    modcap_process,
)

SMALL: dict[str, Any] = {
    "scale_exponent": 2.0,  # found in half the time
    "calibration": 64,
    "optimiser": {"iterations": 5, "batch_size": 16},
    "w_bits": 2,
    "a_bits": 4,
    "k": 2,
    "homogeneity": "any",
}


def quantize(
    stack: dict[str, str],
    folder: Path,
    *flags: str,
    run: Callable[..., CompletedProcess[str]] = modcap_command,
    threads: int = 1,
    **environment: str,
) -> CompletedProcess[str]:
    recipe = folder / "recipe.json"
    recipe.write_text(json.dumps(SMALL | {"threads": threads}))
    return run(
        stack,
        *("quantize", CHECKPOINT, "--arch", ARCH, "--data", "fashion-mnist"),
        *("--eval-images", "500", "--recipe", recipe, *flags),
        **environment,
    )


@pytest.fixture(scope="module")
def report(stack: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    flags = ("--json", "--name", "pipeline")
    done = quantize(stack, tmp_path_factory.mktemp("run"), *flags, run=modcap_process)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_report_keeps_the_contract(report: dict[str, Any]) -> None:
    promised = (
        "checkpoint recipe modules groups fp_top1 top1 oscillation jobs artifact artifact_bytes "
        "mlflow_run_id model_name model_version seconds"
    )
    assert set(promised.split()) <= set(report)
    assert report["jobs"]["executed"] == report["jobs"]["planned"] > 30
    assert [row["variant"] for row in report["comparison"]] == [
        "full precision",
        "rtn",
        "qdrop k=0",
        "qdrop top-k k=2",
    ]
    assert sum(len(group) > 1 for group in report["groups"]) >= 1
    assert report["fp_top1"] > 90
    assert report["artifact_bytes"] < report["fp_bytes"] / 8


def test_second_run_reuses_everything(
    stack: dict[str, str], report: dict[str, Any], tmp_path: Path
) -> None:
    done = quantize(stack, tmp_path, "--json", "--name", "pipeline")
    again = json.loads(done.stdout)
    assert again["jobs"]["executed"] == 0
    for same in ("artifact", "mlflow_run_id", "model_version", "top1"):
        assert again[same] == report[same]


def test_distributed_artifact_is_that_of_the_library(
    report: dict[str, Any],
    store: Store,
    tmp_path: Path,
) -> None:
    calibration = images(64, 0)
    model = checkpoint.load(CHECKPOINT, ARCH).model
    recipe = modcap.Recipe.preset("quick", **SMALL)
    done = modcap.quantize(model, calibration, recipe, preprocess=published_preprocess(ARCH))
    assert fetch(report["artifact"], tmp_path).read_bytes() == done.artifact
    loaded = modcap.load(fetch(report["artifact"], tmp_path))
    assert torch.equal(loaded(calibration), done.network(calibration))


def test_registered_version_predicts_without_pickle(
    stack: dict[str, str], report: dict[str, Any]
) -> None:
    code = (
        "import mlflow, numpy, json\n"
        "model = mlflow.pyfunc.load_model('models:/pipeline@candidate')\n"
        "logits = model.predict(numpy.zeros((3, 1, 28, 28), numpy.float32))\n"
        "print(json.dumps([list(logits.shape), model.metadata.run_id]))"
    )
    environment = os.environ | stack | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    environment = {k: v for k, v in environment.items() if not k.startswith("AWS_")}
    asked = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout.splitlines()[-1])[0] == [3, 10]


def test_mlflow_holds_one_run_and_one_version(
    stack: dict[str, str], report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", stack["MLFLOW_TRACKING_URI"])
    client = MlflowClient(stack["MLFLOW_TRACKING_URI"])
    (version,) = client.search_model_versions("name = 'pipeline'")
    run = client.get_run(report["mlflow_run_id"])
    assert (version.run_id, version.tags["bits"], version.tags["k"]) == (
        report["mlflow_run_id"],
        "W2A4",
        "2",
    )
    assert run.data.params["optimiser.iterations"] == "5"
    assert run.data.metrics["top1"] == report["top1"]
    curves = {name for name in run.data.metrics if name.startswith("loss/")} - {"loss/tuning"}
    assert len(curves) == len(report["groups"])
    for name, steps in ((curves.pop(), 5), ("loss/tuning", 15)):
        assert len(client.get_metric_history(run.info.run_id, name)) == steps
    plots = {file.path for file in client.list_artifacts(run.info.run_id, "plots")}
    assert plots == {f"plots/{n}.png" for n in ("capacity", "oscillation", "reconstruction")}


def test_the_run_was_followed_and_its_baselines_are_runs(
    stack: dict[str, str], report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    for name, value in stack.items():
        monkeypatch.setenv(name, value)
    client = MlflowClient()
    run = client.get_run(report["mlflow_run_id"])
    assert run.data.metrics["live/percent_done"] == 100
    assert client.get_metric_history(run.info.run_id, "live/percent_done")[0].value < 100
    assert (run.data.params["k"], run.data.params["k_asked"]) == ("2", "2")
    assert "None" not in run.data.params.values()
    assert run.data.tags["prefect_flow_run"] == "pipeline W2A4"
    assert run.data.tags["mlflow.source.name"] == "modcap quantize"
    assert run.data.tags["digest.artifact"] == report["artifact_digest"]
    mine = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    nested = client.search_runs([run.info.experiment_id], mine)
    found = {each.info.run_name: each.data.metrics["top1"] for each in nested}
    rows = {row["variant"]: row["top1"] for row in report["comparison"]}
    assert found == {"rtn": rows["rtn"], "k=0": rows["qdrop k=0"]}


def test_prefect_shows_every_job_in_a_task_run(
    stack: dict[str, str], report: dict[str, Any]
) -> None:
    import base64
    import urllib.request

    login = base64.b64encode(stack["PREFECT_API_AUTH_STRING"].encode()).decode()

    def ask(what: str, query: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{stack['PREFECT_API_URL']}/{what}",
            data=json.dumps(query).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Basic {login}"},
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.loads(response.read())

    runs = [  # the run of the report, and those after it, which found everything done
        run["id"]
        for run in ask("flow_runs/filter", {"flows": {"name": {"any_": ["quantize"]}}})
        if run["parameters"]["request"]["recipe"] | {"device": "cpu"} == report["recipe"]
        and run["parameters"]["request"]["checkpoint"] == report["checkpoint"]
        and run["state_type"] == "COMPLETED"
    ]
    completed = {"state": {"type": {"any_": ["COMPLETED"]}}}
    shown = max(
        (
            [each["name"] for each in ask("task_runs/filter", query)]
            for run in runs
            for query in [{"flow_runs": {"id": {"any_": [run]}}, "task_runs": completed}]
        ),
        key=len,
    )
    jobs = [name for name in shown if not name.startswith("publish ")]
    kinds = [re.fullmatch(r"(\d+) jobs: (\w+)", name) for name in jobs]
    assert sum(int(found[1]) if found else 1 for found in kinds) == report["jobs"]["planned"]
    assert {found[2] for found in kinds if found} >= {"evaluate"}
    for group in report["groups"]:  # what optimises has its own
        assert any(group[0] in name for name in jobs)


@pytest.mark.parametrize(
    ("variable", "address"),
    [
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9"),
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:9"),
        ("PREFECT_API_URL", "http://127.0.0.1:9/api"),
    ],
)
def test_unreachable_service_is_one_line_and_exit_2(
    stack: dict[str, str], report: dict[str, Any], tmp_path: Path, variable: str, address: str
) -> None:
    run = modcap_process if variable == "PREFECT_API_URL" else modcap_command  # which it ends
    flags = ("--name", "pipeline", "--no-compare")
    hurry = {"MODCAP_PATIENCE": "2", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    own = {"MODCAP_HOME": str(tmp_path)}  # or the stack would move to where S3 is said to be
    done = quantize(stack, tmp_path, *flags, run=run, **hurry, **own, **{variable: address})
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("modcap: ")
    assert address.removesuffix("/api") in last
    assert "Traceback" not in done.stderr


def test_more_threads_than_any_node_has_are_one_line_and_exit_2(
    stack: dict[str, str], tmp_path: Path
) -> None:
    done = quantize(stack, tmp_path, threads=99, MODCAP_PREFIX="threads")
    assert done.returncode == 2, done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert "asks for 99 CPU threads" in said
    assert "nodes: 2 CPU threads" in said
    assert "lower the recipe's threads" in said
    assert "Traceback" not in done.stderr
