"""Checkpoints land in S3, versions come out, and a gate decides which one is used."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import mlflow
import numpy
import onnxruntime
import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file, save

from modcap import artifact
from tasks import s3 as connections
from tasks.files import fetch
from tests.integration.commands import ROOT, modcap_command, start

NETWORK = "vgg_tiny"
WEIGHTS = load_file(ROOT / f"examples/fashion_mnist/checkpoints/{NETWORK}.safetensors")
POLICY: dict[str, Any] = {
    "settle_seconds": 0,
    "rules": [
        {
            "match": "*",
            "data": "fashion-mnist",
            "eval_images": 100,
            "recipes": [{"fields": {"w_bits": 4, "method": "rtn", "k": 0, "calibration": 32}}],
        }
    ],
}


def weights(number: int) -> dict[str, torch.Tensor]:
    """The shipped weights, with a head of their own."""
    name = max(n for n in WEIGHTS if n.endswith("weight"))
    return {**WEIGHTS, name: WEIGHTS[name] + number / 1000}


def safetensors(number: int, arch: str = f"modcap.zoo:{NETWORK}") -> bytes:
    return save(weights(number), {"architecture": arch})


def pickled_with_code() -> bytes:
    class Run:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, ("touch /tmp/modcap-pickle-ran",)

    buffer = io.BytesIO()
    torch.save({"weight": Run()}, buffer)
    return buffer.getvalue()


@pytest.fixture
def s3(stack: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in stack.items():
        monkeypatch.setenv(name, value)
    connections._client.cache_clear()
    return connections.client(stack["AWS_ENDPOINT_URL_S3"])


def versions(stack: dict[str, str], prefix: str) -> dict[str, int]:
    client = MlflowClient(stack["MLFLOW_TRACKING_URI"])
    found = client.search_model_versions(f"name like '{prefix}%'")
    counts: dict[str, int] = {}
    for version in found:
        counts[version.name] = counts.get(version.name, 0) + 1
    return counts


def states(report: dict[str, Any]) -> dict[str, str]:
    return {row["checkpoint"].rsplit("/", 1)[1]: row["state"] for row in report["checkpoints"]}


def test_twenty_checkpoints_two_scans_at_once_then_two_more(
    stack: dict[str, str], s3: Any, tmp_path: Path
) -> None:
    bucket, prefix = stack["MODCAP_BUCKET"], "incoming/scan"

    def put(name: str, data: bytes) -> None:
        s3.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=data)

    good = [f"scan-good{n}.safetensors" for n in range(9)]
    for number, name in enumerate(good):
        put(name, safetensors(number))
    for number in range(3):
        put(f"scan-truncated{number}.safetensors", safetensors(number)[: -1000 - number])
        put(f"scan-pickled{number}.pt", pickled_with_code())
        put(f"scan-wrong{number}.safetensors", safetensors(number, "modcap.zoo:resnet18_narrow"))
        put(f"scan-pickled{number}.modcap.yaml", f"arch: modcap.zoo:{NETWORK}".encode())
    whole = safetensors(77)
    put("scan-half0.safetensors", whole[:5000])
    put("scan-half0.modcap.yaml", yaml.dump({"bytes": len(whole)}).encode())
    put("scan-half1.safetensors", whole[:-7])
    put("scan-half1.modcap.yaml", yaml.dump({"sha256": sha256(whole).hexdigest()}).encode())
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.dump(POLICY))
    arguments = ["scan", "--json", f"s3://{bucket}/{prefix}", "--policy", str(policy)]

    both = [start(stack, *arguments, MODCAP_PREFIX="scan") for _ in range(2)]
    ended = [process.communicate(timeout=280) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    reports = sorted((json.loads(out) for out, _ in ended), key=lambda r: -r["executed"])
    seen = states(reports[0])
    assert len(seen) == 20
    expected = {
        "good": "registered",
        "trun": "bad",
        "pick": "bad",
        "wron": "bad",
        "half": "waiting",
    }
    assert seen == {name: expected[name[5:9]] for name in seen}
    reasons = {r["checkpoint"]: r["reason"] for r in reports[0]["checkpoints"]}
    assert all(reasons[name] for name in reasons if "good" not in name)
    assert not Path("/tmp/modcap-pickle-ran").exists()
    assert versions(stack, "scan-") == {f"scan-good{n}-w4a4": 1 for n in range(9)}

    third = json.loads(modcap_command(stack, *arguments, MODCAP_PREFIX="scan").stdout)
    assert third["executed"] == 0
    assert set(states(third).values()) == {"known", "bad", "waiting"}
    assert versions(stack, "scan-") == {f"scan-good{n}-w4a4": 1 for n in range(9)}

    put(good[0], safetensors(500))
    put("scan-truncated0.safetensors", safetensors(501))
    put("scan-half0.safetensors", whole)
    fourth = json.loads(modcap_command(stack, *arguments, MODCAP_PREFIX="scan").stdout)
    after = {name: state for name, state in states(fourth).items() if state == "registered"}
    assert set(after) == {good[0], "scan-truncated0.safetensors", "scan-half0.safetensors"}
    counts = versions(stack, "scan-")
    assert counts.pop("scan-good0-w4a4") == 2
    assert set(counts.values()) == {1}


def test_what_is_not_there_makes_no_checkpoint_bad(
    stack: dict[str, str], s3: Any, tmp_path: Path
) -> None:
    bucket = stack["MODCAP_BUCKET"]
    images = io.BytesIO()
    numpy.savez(images, images=numpy.zeros((80, 1, 28, 28), "u1"), labels=numpy.arange(80) % 10)
    policy = tmp_path / "policy.yaml"
    rule = POLICY["rules"][0] | {"data": f"s3://{bucket}/later/images.npz"}
    policy.write_text(yaml.dump(POLICY | {"rules": [rule]}))

    def scan(code: int, **others: str) -> tuple[str, str]:
        arguments = ["scan", "--json", f"s3://{bucket}/incoming/later", "--policy", str(policy)]
        done = modcap_command(stack, *arguments, MODCAP_PREFIX="later", **others)
        assert done.returncode == code, done.stderr
        assert ("1 of 1 checkpoints failed" in done.stderr) == (code == 1)
        (row,) = json.loads(done.stdout)["checkpoints"]
        return row["state"], row["reason"]

    s3.put_object(Bucket=bucket, Key="incoming/later/late.safetensors", Body=safetensors(3))
    state, reason = scan(1)
    assert state == "failed"
    assert "images.npz: cannot be read" in reason
    few = io.BytesIO()
    numpy.savez(few, images=numpy.zeros((20, 1, 28, 28), "u1"), labels=numpy.arange(20) % 10)
    s3.put_object(Bucket=bucket, Key="later/images.npz", Body=few.getvalue())
    state, reason = scan(1)
    assert state == "failed"
    assert "10 images to calibrate on" in reason
    s3.put_object(Bucket=bucket, Key="later/images.npz", Body=images.getvalue())
    state, reason = scan(
        1, MLFLOW_TRACKING_URI="http://127.0.0.1:9", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0"
    )
    assert state == "failed"
    assert "MLflow at http://127.0.0.1:9 cannot be reached" in reason
    assert scan(0) == ("registered", "")
    assert scan(0)[0] == "known"


@pytest.fixture(scope="module")
def registered(
    stack: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Versions 1 (8 bits) and 2 (2 bits, bad) of one model."""
    return [quantized(stack, tmp_path_factory.mktemp("promote"), bits) for bits in ("8", "2")]


def quantized(stack: dict[str, str], folder: Path, bits: str) -> dict[str, Any]:
    checkpoint = ROOT / f"examples/fashion_mnist/checkpoints/{NETWORK}.safetensors"
    recipe = folder / "recipe.json"
    recipe.write_text(json.dumps({"calibration": 32, "method": "rtn", "k": 0}))
    done = modcap_command(
        stack,
        *("quantize", checkpoint, "--arch", f"modcap.zoo:{NETWORK}", "--json"),
        *("--data", "fashion-mnist", "--eval-images", "200", "--recipe", recipe),
        *("--w-bits", bits, "--a-bits", bits, "--name", "gated", "--onnx"),
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


def promote(stack: dict[str, str], *flags: str) -> subprocess.CompletedProcess[str]:
    data = () if "--rollback" in flags else ("--data", "fashion-mnist", "--eval-images", "500")
    return modcap_command(stack, "promote", "gated", "--json", *data, *flags)


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

    second = promote(stack, "--version", "2")
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
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda v: promote(stack, "--version", v, *flags), ("1", "2")))
    assert {both[0].returncode} == {0}, both[0].stderr
    assert both[1].returncode in (0, 3), both[1].stderr
    client = MlflowClient(stack["MLFLOW_TRACKING_URI"])
    assert client.get_model_version_by_alias("gated", "race").version == "1"


def test_a_gate_measures_on_all_images_that_no_version_was_calibrated_on(
    stack: dict[str, str], registered: list[dict[str, Any]], tmp_path: Path
) -> None:
    images = tmp_path / "held-out.npz"
    numpy.savez(images, images=numpy.zeros((30, 1, 28, 28), "u1"), labels=numpy.arange(30) % 10)
    flags = ("--data", str(images), "--version", "1", "--alias", "all")
    done = modcap_command(stack, "promote", "gated", "--json", *flags)
    assert json.loads(done.stdout)["images"] == 30, done.stderr


def test_an_alias_to_compare_with_that_nobody_has_is_refused(
    stack: dict[str, str], registered: list[dict[str, Any]]
) -> None:
    done = promote(stack, "--against", "chmapion")
    assert done.returncode == 2
    assert "no version with alias 'chmapion'" in done.stderr.splitlines()[-1]


def test_unknown_model_is_one_line(stack: dict[str, str]) -> None:
    done = modcap_command(stack, "promote", "nobody", "--data", "fashion-mnist")
    assert done.returncode == 2
    assert "nobody" in done.stderr.splitlines()[-1]


def test_registered_model_serves_http(
    stack: dict[str, str], registered: list[dict[str, Any]], tmp_path: Path
) -> None:
    import socket
    import time
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


def test_no_credential_is_written_anywhere(
    stack: dict[str, str], home: Path, registered: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Logs, MLflow's database and artifacts, and command lines of a full run."""
    import psutil

    secrets = [
        stack["AWS_SECRET_ACCESS_KEY"],
        stack["AWS_ACCESS_KEY_ID"],
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
