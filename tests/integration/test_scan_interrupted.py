"""A scan that is disturbed: inputs that the store lost, and a signal in the middle."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from modcap.core.serialization import digest
from modcap.tasks.storage.objects import cache_folder
from modcap.tasks.storage.store import Store
from tests.integration.commands import modcap_command, start
from tests.integration.copies import copied
from tests.integration.test_scan import POLICY, safetensors, states
from tests.integration.test_scan import s3 as s3


@pytest.mark.timeout(300)
def test_damaged_inputs_cost_no_pass(stack: dict[str, str], s3: Any, tmp_path: Path) -> None:
    """Of the same size and age, so that who examines the checkpoint sees nothing."""
    bucket, prefix = stack["MODCAP_BUCKET"], "incoming/refill"
    store = Store(bucket, "refill", stack["AWS_ENDPOINT_URL_S3"])
    for number in range(2):
        key = f"{prefix}/refill{number}.safetensors"
        s3.put_object(Bucket=bucket, Key=key, Body=safetensors(70 + number))
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.dump(POLICY))
    arguments = ["scan", "--json", f"s3://{bucket}/{prefix}", "--policy", str(policy)]
    first = modcap_command(stack, *arguments, MODCAP_PREFIX="refill")
    assert first.returncode == 0, first.stderr

    store = copied(store, "refill-again")  # workers hold the inputs of the other one in memory
    inputs = list(store.entries("inputs"))
    assert len(inputs) == 4  # two networks, two sets of images
    for entry in inputs:
        found = store.get_document(entry.name)
        assert found is not None
        store.put_document(entry.name, found[0][:-1] + bytes([found[0][-1] ^ 1]))
        (cache_folder("inputs") / entry.key).unlink(missing_ok=True)
    store.remove(list(store.entries("jobs")))
    policy.write_text(yaml.dump(POLICY | {"rules": [POLICY["rules"][0] | {"eval_images": 90}]}))
    again = modcap_command(stack, *arguments, MODCAP_PREFIX=store.prefix)
    assert again.returncode == 0, again.stderr
    assert "put there again" in again.stderr
    assert set(states(json.loads(again.stdout)).values()) == {"registered"}


@pytest.mark.timeout(200)
def test_a_signal_gives_the_prefix_back(stack: dict[str, str], s3: Any, tmp_path: Path) -> None:
    bucket, prefix = stack["MODCAP_BUCKET"], "incoming/signal"
    store = Store(bucket, "signal", stack["AWS_ENDPOINT_URL_S3"])
    name = f"leases/scan-{digest(f's3://{bucket}/{prefix}'.encode())[:16]}.json"
    for number in range(3):
        key = f"{prefix}/signal{number}.safetensors"
        s3.put_object(Bucket=bucket, Key=key, Body=safetensors(80 + number))
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.dump(POLICY))
    arguments = ["scan", "--json", f"s3://{bucket}/{prefix}", "--policy", str(policy)]
    for sent, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with start(stack, *arguments, MODCAP_PREFIX="signal") as scan:
            limit = time.monotonic() + 100
            while store.get_document(name) is None:
                assert scan.poll() is None, scan.communicate()
                assert time.monotonic() < limit
                time.sleep(0.05)
            scan.send_signal(sent)
            _, err = scan.communicate(timeout=30)
        assert scan.returncode == code, err
        assert store.get_document(name) is None
