"""The policies of infra/s3 on a real SeaweedFS: each identity may do its work, and nothing else."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from botocore.exceptions import BotoCoreError, ClientError
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from modcap.core.errors import InputError, Unavailable
from modcap.core.serialization import Result, digest
from modcap.infra.local.home import Home
from modcap.infra.local.services import program
from modcap.infra.s3.identities import ROLES, identities, policy
from modcap.tasks.storage import s3 as connections
from modcap.tasks.storage.lease import lease
from modcap.tasks.storage.objects import fetch, find
from modcap.tasks.storage.store import MissingInput, Store

REGION, SECRET = "us-east-1", "secret-of-a-role"
ADMIN = {"accessKey": "admin-for-this-test", "secretKey": "secret-for-this-test"}


def users() -> dict[str, Any]:
    """One who may do everything, and each role; the bucket "fresh" is not there yet."""
    admin = {"name": "admin", "credentials": [ADMIN], "actions": ["Admin"]}
    found: dict[str, Any] = {"identities": [admin], "policies": []}
    for results in ("results", "fresh"):
        for role in ROLES:
            name = f"{role}-{results}"
            keys = {"accessKey": name, "secretKey": SECRET}
            identity = {"name": name, "credentials": [keys], "policyNames": [name]}
            found["identities"].append(identity)
            content = policy(role, results, "checkpoints")
            found["policies"].append({"name": name, "content": content})
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A SeaweedFS of its own with these users; holds both buckets."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "identities.json").write_text(json.dumps(users()))
    home = Home(folder)
    state: dict[str, Any] = {"ports": {}}
    names = ("s3", "filer", "volume", "master")
    ports = {name: home.port(state, f"policies-{name}") for name in names}
    command = [
        *(program("weed"), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *("-filer", "-s3", f"-s3.config={folder}/identities.json"),
        *(f"-{name}.port={port}" for name, port in ports.items()),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
        *("-master.volumeSizeLimitMB=64", "-volume.max=0", "-master.electionTimeout=1s"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    try:
        admin = connect(endpoint, ADMIN["accessKey"], ADMIN["secretKey"])
        until_ready(admin)
        admin.put_object(Bucket="checkpoints", Key="incoming/net.safetensors", Body=b"weights")
        for name in ("ready", "mlflow/1/model"):
            admin.put_object(Bucket="results", Key=name, Body=b"x")
        yield endpoint
    finally:
        process.kill()
        process.wait()


def connect(endpoint: str, key: str, secret: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        region_name=REGION,
    )


@retry(
    retry=retry_if_exception_type((BotoCoreError, ClientError)),
    stop=stop_after_delay(60),
    wait=wait_fixed(0.5),
)
def until_ready(admin: Any) -> None:
    have = {bucket["Name"] for bucket in admin.list_buckets()["Buckets"]}
    for bucket in {"checkpoints", "results"} - have:
        admin.create_bucket(Bucket=bucket)
    admin.put_object(Bucket="results", Key="ready", Body=b"ready")


def become(
    monkeypatch: pytest.MonkeyPatch, server: str, role: str, results: str = "results"
) -> Any:
    """From here on the environment's credentials are those of this role."""
    name = f"{role}-{results}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", name)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    connections._client.cache_clear()
    return connect(server, name, SECRET)


def refused(call: Any, **arguments: Any) -> None:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    assert caught.value.response["Error"]["Code"] in ("AccessDenied", "403")


@pytest.fixture(autouse=True)
def _own_client() -> Iterator[None]:
    yield
    connections._client.cache_clear()


def test_an_uploader_puts_and_lists_its_own_and_reads_nothing(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3 = become(monkeypatch, server, "uploader")
    key = "incoming/own.safetensors"
    s3.put_object(Bucket="checkpoints", Key=key, Body=b"weights")
    listed = s3.list_objects_v2(Bucket="checkpoints", Prefix="incoming/")
    assert key in [each["Key"] for each in listed["Contents"]]
    refused(s3.get_object, Bucket="checkpoints", Key=key)
    refused(s3.delete_object, Bucket="checkpoints", Key=key)
    refused(s3.list_objects_v2, Bucket="checkpoints")
    refused(s3.list_objects_v2, Bucket="checkpoints", Prefix="data/")
    refused(s3.put_object, Bucket="checkpoints", Key="incoming2/x", Body=b"x")
    refused(s3.put_object, Bucket="checkpoints", Key="data/x", Body=b"x")
    refused(s3.put_object, Bucket="results", Key="incoming/x", Body=b"x")
    refused(s3.list_objects_v2, Bucket="results", Prefix="incoming/")
    refused(s3.create_bucket, Bucket="another")


def test_a_server_of_mlflow_keeps_files_of_runs_alone(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3 = become(monkeypatch, server, "server")
    s3.put_object(Bucket="results", Key="mlflow/1/report.html", Body=b"x")
    assert s3.get_object(Bucket="results", Key="mlflow/1/report.html")["Body"].read() == b"x"
    assert s3.list_objects_v2(Bucket="results", Prefix="mlflow/1/")["KeyCount"] == 2
    s3.delete_object(Bucket="results", Key="mlflow/1/report.html")
    refused(s3.put_object, Bucket="results", Key="jobs/x", Body=b"x")
    refused(s3.get_object, Bucket="results", Key="ready")
    refused(s3.list_objects_v2, Bucket="results")
    refused(s3.list_objects_v2, Bucket="results", Prefix="jobs/")
    refused(s3.list_objects_v2, Bucket="checkpoints", Prefix="mlflow/")
    refused(s3.get_object, Bucket="checkpoints", Key="incoming/net.safetensors")


def test_a_worker_reads_inputs_and_writes_results_of_jobs_alone(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3 = become(monkeypatch, server, "worker")
    (found,) = (
        o for o in find("s3://checkpoints/incoming") if o.address.endswith("net.safetensors")
    )
    assert fetch(found.address, tmp_path).read_bytes() == b"weights"
    store = Store("results", "", server)
    store.ensure_bucket()
    assert store.put("k", Result({"a": torch.arange(3)}, {"x": 1}))
    tensors = next(e.name for e in store.entries("jobs") if e.name.endswith(".safetensors"))
    s3.put_object(Bucket="results", Key=tensors, Body=b"damaged")
    with pytest.warns(UserWarning, match="set aside"):
        assert store.get("k") is None  # and it may be computed again
    assert store.put("k", Result({}, {"x": 1}))
    refused(s3.delete_object, Bucket="results", Key=tensors)
    name = digest(b"content")  # the network of a scanned checkpoint
    store.upload_input(name, b"content")
    assert store.fetch_input(name, tmp_path).read_bytes() == b"content"
    s3.put_object(Bucket="results", Key=f"inputs/{name}", Body=b"damaged")
    (other := tmp_path / "other").mkdir()
    with pytest.raises(MissingInput):
        store.fetch_input(name, other)
    store.upload_input(name, b"content")  # the damaged one is gone, and this one there
    assert store.fetch_input(name, other).read_bytes() == b"content"
    for name in ("artifacts/x", "scans/x", "leases/x", "mlflow/x", "incoming/x"):
        refused(s3.put_object, Bucket="results", Key=name, Body=b"x")
    refused(s3.get_object, Bucket="results", Key="mlflow/1/model")
    refused(s3.put_object, Bucket="checkpoints", Key="incoming/net.safetensors", Body=b"other")
    refused(s3.delete_object, Bucket="checkpoints", Key="incoming/net.safetensors")
    refused(s3.create_bucket, Bucket="another")


def test_a_driver_runs_the_store_and_reads_checkpoints(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3 = become(monkeypatch, server, "driver")
    store = Store("results", "", server)
    store.ensure_bucket()
    result = Result({"a": torch.arange(3)}, {"x": 1})
    assert store.put("of-driver", result)
    assert not store.put("of-driver", result)
    found = store.get("of-driver")
    assert found is not None
    assert found.meta == result.meta
    name = digest(b"content")
    store.upload_input(name, b"content")
    assert store.fetch_input(name, tmp_path).read_bytes() == b"content"
    with lease(store, "one") as mine:
        assert mine
    assert store.put_artifact(name, b"content")
    assert list(store.verify()) == []
    store.remove([entry for entry in store.entries() if entry.key == "of-driver"])
    assert store.get("of-driver") is None
    assert fetch("s3://checkpoints/incoming/net.safetensors", tmp_path).read_bytes() == b"weights"
    refused(s3.put_object, Bucket="checkpoints", Key="incoming/x", Body=b"x")
    refused(s3.delete_object, Bucket="checkpoints", Key="incoming/net.safetensors")
    refused(s3.put_object, Bucket="results", Key="mlflow/x", Body=b"x")
    refused(s3.get_object, Bucket="results", Key="mlflow/1/model")
    refused(s3.create_bucket, Bucket="another")
    with pytest.raises(InputError, match="elsewhere"):
        find("s3://elsewhere/")


def test_a_driver_makes_its_own_bucket_and_no_other(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    become(monkeypatch, server, "driver", "fresh")
    Store("fresh", "", server).ensure_bucket()
    with pytest.raises(Unavailable, match="another"):
        Store("another", "", server).ensure_bucket()


def test_the_identities_of_compose_are_these_policies() -> None:
    found = identities("modcap", dict.fromkeys(ROLES, "secret"))
    assert [each["policyNames"] for each in found["identities"]] == [[role] for role in ROLES]
    for each in found["policies"]:
        assert each["content"] == policy(each["name"], "modcap", "modcap")
        assert "RESULTS" not in each["content"]
        assert "CHECKPOINTS" not in each["content"]
