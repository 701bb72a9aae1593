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

from modcap.core.errors import InputError
from modcap.core.serialization import Result, digest
from modcap.infra.local.home import Home
from modcap.infra.local.services import program
from modcap.tasks.storage import s3 as connections
from modcap.tasks.storage.lease import lease
from modcap.tasks.storage.objects import fetch, find
from modcap.tasks.storage.store import Store

POLICIES = Path(__file__).parents[2] / "infra/s3"
REGION = "us-east-1"
ADMIN = {"accessKey": "admin-for-this-test", "secretKey": "secret-for-this-test"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A SeaweedFS of its own, whose users and policies can be changed; holds both buckets."""
    folder = tmp_path_factory.mktemp("s3")
    identity = {
        "name": "admin",
        "credentials": [ADMIN],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
    home = Home(folder)
    state: dict[str, Any] = {"ports": {}}
    names = ("s3", "filer", "volume", "master")
    ports = {name: home.port(state, f"policies-{name}") for name in names}
    command = [
        *(program("weed"), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *("-filer", "-s3", f"-s3.config={folder}/identities.json", "-s3.iam.readOnly=false"),
        *(f"-{name}.port={port}" for name, port in ports.items()),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
        *("-master.volumeSizeLimitMB=64", "-volume.max=0", "-master.electionTimeout=1s"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    try:
        admin = connect("s3", endpoint, ADMIN["accessKey"], ADMIN["secretKey"])
        until_ready(admin)
        admin.put_object(Bucket="checkpoints", Key="incoming/net.safetensors", Body=b"weights")
        yield endpoint
    finally:
        process.kill()
        process.wait()


def connect(service: str, endpoint: str, key: str, secret: str) -> Any:
    return boto3.client(
        service,
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


def policy(name: str) -> str:
    text = (POLICIES / f"{name}.json").read_text()
    return text.replace("CHECKPOINTS", "checkpoints").replace("RESULTS", "results")


def become(monkeypatch: pytest.MonkeyPatch, server: str, *policies: str) -> Any:
    """From here on the environment's credentials are those of a new user with these policies."""
    iam = connect("iam", server, ADMIN["accessKey"], ADMIN["secretKey"])
    name = "-".join(policies)
    iam.create_user(UserName=name)
    for each in policies:
        iam.put_user_policy(UserName=name, PolicyName=each, PolicyDocument=policy(each))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    connections._client.cache_clear()
    return connect("s3", server, key["AccessKeyId"], key["SecretAccessKey"])


def refused(call: Any, **arguments: Any) -> None:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    assert caught.value.response["Error"]["Code"] in ("AccessDenied", "403")


@pytest.fixture(autouse=True)
def _own_client() -> Iterator[None]:
    yield
    connections._client.cache_clear()


def test_a_reader_finds_and_fetches_checkpoints_and_writes_nowhere(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3 = become(monkeypatch, server, "reader")
    (found,) = find("s3://checkpoints/incoming")
    assert fetch(found.address, tmp_path).read_bytes() == b"weights"
    key = "incoming/net.safetensors"
    refused(s3.put_object, Bucket="checkpoints", Key=key, Body=b"other")
    refused(s3.delete_object, Bucket="checkpoints", Key=key)
    refused(s3.list_objects_v2, Bucket="results")
    refused(s3.put_object, Bucket="results", Key="x", Body=b"x")
    refused(s3.create_bucket, Bucket="another")
    with pytest.raises(InputError, match="results"):
        find("s3://results/")


def test_a_writer_runs_the_store_and_sees_no_checkpoint(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3 = become(monkeypatch, server, "writer")
    store = Store("results", "writer", server)
    store.ensure_bucket()
    result = Result({"a": torch.arange(3)}, {"x": 1})
    assert store.put("k", result)
    assert not store.put("k", result)
    found = store.get("k")
    assert found is not None
    assert found.meta == result.meta
    name = digest(b"content")
    store.upload_input(name, b"content")
    assert store.fetch_input(name, tmp_path).read_bytes() == b"content"
    with lease(store, "one") as mine:
        assert mine
    assert list(store.verify()) == []
    store.remove(list(store.entries()))
    assert store.get("k") is None
    refused(s3.list_objects_v2, Bucket="checkpoints")
    refused(s3.get_object, Bucket="checkpoints", Key="incoming/net.safetensors")
    with pytest.raises(InputError, match="checkpoints"):
        fetch("s3://checkpoints/incoming/net.safetensors", tmp_path)


def test_a_worker_with_both_reads_there_and_writes_here(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3 = become(monkeypatch, server, "reader", "writer")
    assert fetch("s3://checkpoints/incoming/net.safetensors", tmp_path).read_bytes() == b"weights"
    store = Store("results", "worker", server)
    assert store.put("k", Result({}, {"x": 1}))
    refused(s3.put_object, Bucket="checkpoints", Key="x", Body=b"x")
