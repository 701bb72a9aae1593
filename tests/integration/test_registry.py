"""Versions of a registered model: a gate decides which one is used, and anybody can serve it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import mlflow
import numpy
import onnxruntime
import pytest
import torch
from mlflow import MlflowClient

from modcap.core import serialization as results
from modcap.export import artifact
from modcap.tasks.storage.objects import fetch
from modcap.tasks.storage.s3 import client as s3_client
from modcap.tasks.storage.s3 import listed
from modcap.tasks.storage.store import Store
from tests.integration.commands import ROOT, modcap_command, modcap_process
from tests.test_maps import PREPROCESS, SIZE, Pyramid, npz

NETWORK = "vgg_tiny"


@pytest.fixture(scope="module")
def registered(
    stack: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Versions 1 (8 bits) and 2 (2 bits, bad) of one model."""
    return [quantized(stack, tmp_path_factory.mktemp("promote"), bits) for bits in ("8", "2")]


def quantized(stack: dict[str, str], folder: Path, bits: str) -> dict[str, Any]:
    checkpoint = ROOT / f"examples/fashion_mnist/checkpoints/{NETWORK}.safetensors"
    recipe = folder / "recipe.json"
    recipe.write_text(
        json.dumps({"calibration": 32, "method": "rtn", "k": 0, "scale_exponent": 2.0})
    )
    done = modcap_command(
        stack,
        *("quantize", checkpoint, "--arch", f"modcap.zoo:{NETWORK}", "--json"),
        *("--data", "fashion-mnist", "--eval-images", "200", "--recipe", recipe),
        *("--w-bits", bits, "--a-bits", bits, "--name", "gated", "--onnx", "--export", "encodings"),
    )
    assert done.returncode == 0, done.stderr
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def test_the_last_version_is_the_candidate_whatever_died_before_it_was(
    stack: dict[str, str], registered: list[dict[str, Any]], tmp_path: Path
) -> None:
    client = MlflowClient(stack["MLFLOW_TRACKING_URI"])
    for before in ("1", None):
        client.delete_registered_model_alias("gated", "candidate")
        if before is not None:
            client.set_registered_model_alias("gated", "candidate", before)
        assert quantized(stack, tmp_path, "2")["model_version"] == "2"
        assert client.get_model_version_by_alias("gated", "candidate").version == "2"
    assert quantized(stack, tmp_path, "8")["model_version"] == "1"
    assert client.get_model_version_by_alias("gated", "candidate").version == "2"


def test_onnx_form_comes_with_the_version(
    stack: dict[str, str],
    registered: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in stack.items():  # not mlflow.set_tracking_uri: it would outlive this test
        monkeypatch.setenv(name, value)
    version = MlflowClient().get_model_version("gated", registered[0]["model_version"])
    rows = {row["format"]: row for row in registered[0]["exports"]}
    assert set(rows) == {"onnx", "encodings"}
    assert rows["onnx"]["agreement"] == 100
    assert rows["onnx"]["file"] == f"models:/gated/{version.version}/{version.tags['onnx']}"
    file = mlflow.artifacts.download_artifacts(
        artifact_uri=f"models:/gated/{version.version}/{version.tags['onnx']}",
        dst_path=str(tmp_path),
    )
    packed = tmp_path / "network.safetensors"
    packed.write_bytes(fetch(registered[0]["artifact"], tmp_path).read_bytes())
    images = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        expected = artifact.load(packed)(images)
    # sums are added up in another order there: a value between two integers may round either way
    assert torch.linalg.norm(torch.from_numpy(logits) - expected) < 0.01 * expected.norm()


def test_a_version_is_a_logged_model_of_its_run_with_its_images(
    stack: dict[str, str], registered: list[dict[str, Any]]
) -> None:
    client = MlflowClient(stack["MLFLOW_TRACKING_URI"])
    version = client.get_model_version("gated", "1")
    run = client.get_run(str(version.run_id))
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert model.source_run_id == version.run_id
    assert str(model.status) == "READY"
    assert version.source == model.artifact_location
    contexts = {entry.tags[0].value: entry.dataset for entry in run.inputs.dataset_inputs}
    assert set(contexts) == {"calibration", "evaluation"}
    assert contexts["calibration"].name == "fashion-mnist"
    assert "torch 2" in version.tags["environment"]
    (environment,) = registered[0]["environments"]
    assert environment["jobs"] > 3


def test_evaluate_and_promote_measure_the_same_images(
    stack: dict[str, str], registered: list[dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "images.npz"
    shipped = numpy.load(ROOT / "examples/fashion_mnist/data/evaluation.npz")
    numpy.savez(file, images=shipped["images"][:300], labels=shipped["labels"][:300])
    done = modcap_command(stack, "evaluate", "models:/gated/1", "--data", file, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    flags = ("--data", file, "--version", "1", "--alias", "same", "--min-top1", "1", "--json")
    gate = json.loads(modcap_command(stack, "promote", "gated", *flags).stdout)
    for name in ("top1", "fp_top1", "images", "measured"):
        assert found[name] == gate[name]
    assert found["images"] == 300
    assert found["agreement"] > 90
    assert found["warnings"] == []


def test_maps_without_labels_are_registered_served_and_promoted(
    stack: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in stack.items():
        monkeypatch.setenv(name, value)
    torch.manual_seed(0)
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(Pyramid().eval(), (torch.randn(2, *SIZE),), dynamic_shapes=batch)
    torch.export.save(program, tmp_path / "maps.pt2")
    data = ("--data", npz(tmp_path))
    done = modcap_command(
        stack,
        *("quantize", tmp_path / "maps.pt2", *data, "--preprocess", PREPROCESS, "--method", "rtn"),
        *("--w-bits", "8", "--a-bits", "8", "--k", "0", "--calibration", "16", "--onnx", "--json"),
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    version = MlflowClient().get_model_version("maps-w8a8", made["model_version"])
    assert (version.tags["metric"], version.tags["fp_error"]) == ("error", "0")
    run = MlflowClient().get_run(made["mlflow_run_id"])
    assert run.data.metrics["error"] == made["value"] > 0
    images = numpy.ones((2, *SIZE), "f4")
    found = mlflow.pyfunc.load_model("models:/maps-w8a8@candidate").predict(images)
    assert {name: value.shape for name, value in found.items()} == {
        "0": (2, 6, 8, 12),
        "1": (2, 6, 4, 6),
    }
    gate = ("promote", "maps-w8a8", *data, "--json")
    passed = json.loads(modcap_command(stack, *gate, "--max-drop", "0.01").stdout)
    assert (passed["passed"], passed["metric"]) == (True, "error")
    assert passed["value"] == pytest.approx(made["value"], rel=1e-4)
    refused = modcap_command(stack, *gate, "--min-top1", "50")
    assert refused.returncode == 2
    assert "--min-top1 cannot be measured on" in refused.stderr


def promote(
    stack: dict[str, str],
    *flags: str,
    run: Callable[..., CompletedProcess[str]] = modcap_command,
) -> CompletedProcess[str]:
    data = () if "--rollback" in flags else ("--data", "fashion-mnist", "--eval-images", "500")
    return run(stack, "promote", "gated", "--json", *data, *flags)


def test_gate_promotes_refuses_and_rolls_back(
    stack: dict[str, str], registered: list[dict[str, Any]]
) -> None:
    client = MlflowClient(stack["MLFLOW_TRACKING_URI"])
    first = promote(stack, "--version", "1", "--max-drop", "1.0")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["from_version"] is None
    assert client.get_model_version_by_alias("gated", "champion").version == "1"

    refused = promote(stack, "--max-drop", "1.0", "--max-bytes", "10", "--against", "champion")
    assert refused.returncode == 3
    decision = json.loads(refused.stdout)
    assert (decision["passed"], decision["images"]) == (False, 500)
    figures = [(row["condition"], row["met"]) for row in decision["conditions"]]
    rival = ("against version 1 (champion)", False)
    assert figures == [("max_drop", False), ("max_bytes", False), rival]
    last = refused.stderr.splitlines()[-1]
    assert "points of top-1" in last
    assert "bytes" in last
    assert "version 1 (champion) is more accurate" in last
    assert client.get_model_version_by_alias("gated", "champion").version == "1"
    tags = client.get_model_version("gated", "2").tags
    assert tags["gate.champion.decision"] == "refused"
    run = client.get_run(tags["gate.champion.run"])
    assert run.data.params["passed"] == "False"
    assert run.data.metrics["drop"] > 1

    second = promote(stack, "--version", "2", "--max-drop", "100")
    assert json.loads(second.stdout)["from_version"] == "1"
    assert client.get_model_version_by_alias("gated", "champion").version == "2"
    history = "modcap.history.champion"  # with a promotion that died before it moved the alias
    moves = json.loads(client.get_registered_model("gated").tags[history])
    died = json.dumps([*moves, {"from": "2", "to": "9", "by": "", "at": ""}])
    client.set_registered_model_tag("gated", history, died)
    back = promote(stack, "--rollback")
    assert back.returncode == 0, back.stderr
    assert client.get_model_version_by_alias("gated", "champion").version == "1"
    again = promote(stack, "--rollback")
    assert again.returncode == 2
    assert "no earlier version" in again.stderr


def test_two_promotions_at_once_decide_one_after_the_other(
    stack: dict[str, str], registered: list[dict[str, Any]]
) -> None:
    """Whichever comes first, the more accurate version is the champion in the end."""
    flags = ("--alias", "race", "--against", "race")

    def run(version: str) -> CompletedProcess[str]:
        return promote(stack, "--version", version, *flags, run=modcap_process)

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(run, ("1", "2")))
    assert {both[0].returncode} == {0}, both[0].stderr
    assert both[1].returncode in (0, 3), both[1].stderr
    client = MlflowClient(stack["MLFLOW_TRACKING_URI"])
    assert client.get_model_version_by_alias("gated", "race").version == "1"


def test_a_gate_measures_on_all_images_that_no_version_was_calibrated_on(
    stack: dict[str, str], registered: list[dict[str, Any]], tmp_path: Path
) -> None:
    images = tmp_path / "held-out.npz"
    numpy.savez(images, images=numpy.zeros((30, 1, 28, 28), "u1"), labels=numpy.arange(30) % 10)
    flags = ("--data", str(images), "--version", "1", "--alias", "all", "--min-top1", "0")
    done = modcap_command(stack, "promote", "gated", "--json", *flags)
    assert json.loads(done.stdout)["images"] == 30, done.stderr


def test_an_alias_to_compare_with_that_nobody_has_is_refused(
    stack: dict[str, str], registered: list[dict[str, Any]]
) -> None:
    done = promote(stack, "--against", "chmapion")
    assert done.returncode == 2
    assert "no version with alias 'chmapion'" in done.stderr.splitlines()[-1]


def test_unknown_model_is_one_line(stack: dict[str, str]) -> None:
    done = modcap_command(stack, "promote", "nobody", "--data", "fashion-mnist", "--max-drop", "1")
    assert done.returncode == 2
    assert "nobody" in done.stderr.splitlines()[-1]


def test_registered_model_serves_http(
    stack: dict[str, str], registered: list[dict[str, Any]], tmp_path: Path
) -> None:
    import socket
    import urllib.request

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "serve.log"
    program = Path(sys.executable).with_name("mlflow")
    output = log.open("w")
    server = subprocess.Popen(
        [
            *(str(program), "models", "serve", "-m", "models:/gated/1", "--env-manager", "local"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ],
        env={
            **os.environ,
            **stack,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        },
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        body = json.dumps({"inputs": torch.zeros(2, 1, 28, 28).tolist()}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            body,
            {"Content-Type": "application/json"},
        )
        limit = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    answer = json.loads(response.read())
                break
            except OSError:
                assert time.monotonic() < limit
                assert server.poll() is None, log.read_text()
                time.sleep(1)
        assert [len(row) for row in answer["predictions"]] == [10, 10]
    finally:
        import psutil

        if server.poll() is None:
            for process in psutil.Process(server.pid).children(recursive=True):
                process.kill()
            server.kill()
        server.wait()
        output.close()


@pytest.fixture
def swapped(
    stack: dict[str, str], registered: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Version 1 holds the artifact of version 2, wherever MLflow keeps it."""
    for name, value in stack.items():
        monkeypatch.setenv(name, value)
    whole = Store(stack["MODCAP_BUCKET"], "mlflow", stack["AWS_ENDPOINT_URL_S3"])
    found = listed(s3_client(whole.endpoint), whole.bucket, "mlflow/")
    names = [entry["Key"].removeprefix("mlflow/") for entry in found]
    contents = {n: whole.get_document(n) for n in names if n.endswith("network.safetensors")}
    files = {name: document[0] for name, document in contents.items() if document is not None}
    first, second = (report["artifact_digest"] for report in registered)
    assert first != second
    other = next(data for data in files.values() if results.digest(data) == second)
    mine = [name for name, data in files.items() if results.digest(data) == first]
    assert mine
    for name in mine:
        whole.put_document(name, other)
    yield
    for name in mine:
        whole.put_document(name, files[name])


def test_a_swapped_artifact_is_refused_before_it_is_read(
    stack: dict[str, str], registered: list[dict[str, Any]], swapped: None
) -> None:
    done = promote(stack, "--version", "1", "--alias", "swapped", "--max-drop", "1")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert "gated version 1 is not what was made" in last
    client = MlflowClient(stack["MLFLOW_TRACKING_URI"])
    assert "swapped" not in client.get_registered_model("gated").aliases
    with pytest.raises(Exception, match="is not what was made"):  # MLflow imports its code anew
        mlflow.pyfunc.load_model("models:/gated/1")


def test_a_swapped_artifact_in_the_store_is_refused(
    stack: dict[str, str],
    registered: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in stack.items():
        monkeypatch.setenv(name, value)
    first, second = (report["artifact"] for report in registered)
    store = Store.from_environment()
    places = [
        address.removeprefix(f"s3://{store.bucket}/{store.prefix}") for address in (first, second)
    ]
    own, other = (store.get_document(place) for place in places)
    assert own is not None
    assert other is not None
    store.put_document(places[0], other[0])
    flags = ("--data", "fashion-mnist", "--preprocess", "mean=0.286,std=0.353", "--eval-images")
    try:
        done = modcap_command(stack, "evaluate", first, *flags, "20")
    finally:
        store.put_document(places[0], own[0])
    assert done.returncode == 2
    assert "is not what was made" in done.stderr.splitlines()[-1]
    assert modcap_process(stack, "evaluate", first, *flags, "20").returncode == 0


def test_a_version_that_modcap_did_not_make_is_one_line(
    stack: dict[str, str], registered: list[dict[str, Any]]
) -> None:
    client = MlflowClient(stack["MLFLOW_TRACKING_URI"])
    client.create_registered_model("foreign")
    version = client.get_model_version("gated", "1")
    (made,) = client.get_run(str(version.run_id)).outputs.model_outputs
    source = str(version.source)
    client.create_model_version("foreign", source, version.run_id, model_id=made.model_id)
    done = modcap_command(
        stack, "promote", "foreign", "--version", "1", "--data", "fashion-mnist", "--max-drop", "1"
    )
    assert done.returncode == 2
    assert "foreign version 1 was not made by modcap" in done.stderr.splitlines()[-1]


def test_the_candidate_moves_under_the_lease_of_the_model(
    stack: dict[str, str], registered: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who holds the lease reads, and a later version becomes candidate; what it then writes is on
    what it read, so nobody may come between."""
    from modcap.flows.registry.aliases import moving_aliases
    from modcap.flows.registry.candidate import move_candidate

    for name, value in stack.items():
        monkeypatch.setenv(name, value)
    client = MlflowClient(stack["MLFLOW_TRACKING_URI"])
    order: list[str] = []

    def older() -> None:
        with moving_aliases("gated") as mine:
            order.append("older reads")
            started.set()
            time.sleep(2)
            move_candidate(client, "gated", "1", mine)
            order.append("older wrote")

    def newer() -> None:
        started.wait(30)
        with moving_aliases("gated") as mine:
            order.append("newer reads")
            move_candidate(client, "gated", "2", mine)

    started = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(older), pool.submit(newer)]:
            future.result()
    assert order == ["older reads", "older wrote", "newer reads"]
    assert client.get_model_version_by_alias("gated", "candidate").version == "2"


def test_the_candidate_stays_where_a_later_version_is_worse(
    stack: dict[str, str], registered: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from modcap.flows.registry.aliases import moving_aliases
    from modcap.flows.registry.candidate import move_candidate

    for name, value in stack.items():
        monkeypatch.setenv(name, value)
    client = MlflowClient(stack["MLFLOW_TRACKING_URI"])
    client.create_registered_model("ruled")
    like = client.get_model_version("gated", "1")
    (logged,) = client.get_run(str(like.run_id)).outputs.model_outputs
    moved: list[tuple[str, str]] = []
    for changes in ({}, {"top1": "50"}, {"top1": "50", "artifact_bytes": "10"}):
        tags = {**like.tags, **changes}
        made = client.create_model_version(
            "ruled", str(like.source), like.run_id, tags, model_id=logged.model_id
        )
        with moving_aliases("ruled") as mine:
            move = move_candidate(client, "ruled", str(made.version), mine)
        moved.append((move.version, move.reason))
        assert client.get_model_version_by_alias("ruled", "candidate").version == move.version
    assert [version for version, _ in moved] == ["1", "1", "3"]
    assert "version 1 stays candidate: version 2 is less accurate (top-1 50.00" in moved[1][1]
    assert client.get_model_version("ruled", "2").tags["not_candidate"] == moved[1][1]
    assert "less accurate" in moved[2][1]
    assert "but smaller" in moved[2][1]


def test_no_credential_is_written_anywhere(
    stack: dict[str, str], home: Path, registered: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Logs, MLflow's database and artifacts, and command lines of a full run."""
    import psutil

    secrets = [
        stack["AWS_SECRET_ACCESS_KEY"],
        stack["AWS_ACCESS_KEY_ID"],
        stack["MLFLOW_TRACKING_PASSWORD"],
        stack["PREFECT_API_AUTH_STRING"].partition(":")[2],
        Path(stack["RAY_AUTH_TOKEN_PATH"]).read_text().strip(),
    ]
    files = [
        *(home / "logs").iterdir(),
        *(home / "mlflow").rglob("*"),
        *(home / "prefect").rglob("*"),
    ]
    texts = {str(file): file.read_bytes() for file in files if file.is_file()}
    client = MlflowClient(stack["MLFLOW_TRACKING_URI"])
    for report in registered:
        folder = client.download_artifacts(report["mlflow_run_id"], "", str(tmp_path))
        texts |= {str(f): f.read_bytes() for f in Path(folder).rglob("*") if f.is_file()}
    for process in psutil.process_iter(["cmdline"]):
        texts[f"process {process.pid}"] = " ".join(process.info["cmdline"] or []).encode()
    assert len(texts) > 20
    for where, content in texts.items():
        for secret in secrets:
            assert secret.encode() not in content, where
    assert min(map(len, secrets)) >= 20  # they are real, not empty
