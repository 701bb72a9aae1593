"""Checkpoints land in S3, and a scan makes versions of them."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file, save

from modcap.tasks.storage import s3 as connections
from tests.integration.commands import ROOT, modcap_command, start

NETWORK = "vgg_tiny"
WEIGHTS = load_file(ROOT / f"examples/fashion_mnist/checkpoints/{NETWORK}.safetensors")
FIELDS = {"w_bits": 4, "method": "rtn", "k": 0, "calibration": 32, "scale_exponent": 2.0}
POLICY: dict[str, Any] = {
    "settle_seconds": 0,
    "factories": [f"modcap.zoo:{NETWORK}", "modcap.zoo:resnet18_narrow"],
    "rules": [
        {
            "match": "*",
            "data": "fashion-mnist",
            "eval_images": 100,
            "recipes": [{"fields": FIELDS}],
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
