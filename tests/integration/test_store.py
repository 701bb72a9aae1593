"""The store on the real SeaweedFS: written once, verified, damage recovered."""

from __future__ import annotations

import json
import os
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError
from tenacity import stop_after_delay

from modcap.core.errors import InputError, ModcapError
from modcap.core.serialization import DamagedResult, Result, digest
from modcap.tasks.storage import lease as lease_module
from modcap.tasks.storage.lease import Lease
from modcap.tasks.storage.objects import cache_folder, fetch
from modcap.tasks.storage.s3 import client
from modcap.tasks.storage.store import Store

RESULT = Result({"a": torch.arange(6).reshape(2, 3), "b": torch.tensor(0.5)}, {"x": [1, "é"]})


def same(a: Result | None, b: Result) -> bool:
    return (
        a is not None
        and a.meta == b.meta
        and a.tensors.keys() == b.tensors.keys()
        and all(torch.equal(a.tensors[name], b.tensors[name]) for name in b.tensors)
    )


def test_result_comes_back_and_is_written_once(store: Store) -> None:
    assert store.get("k") is None
    assert store.put("k", RESULT)
    assert not store.put("k", Result(meta={"other": 1}))
    assert same(store.get("k"), RESULT)
    assert store.done(["k", "missing"]) == {"k"}
    assert list(store.keys()) == ["k"]
    assert list(store.verify()) == []


def test_one_of_eight_writers_wins(store: Store) -> None:
    results = [Result(meta={"writer": i}) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda result: store.put("race", result), results))
    assert sum(won) == 1
    found = store.get("race")
    assert found is not None
    assert found.meta == {"writer": won.index(True)}


@pytest.mark.parametrize("part", ["result.json", "tensors"])
@pytest.mark.parametrize("damage", ["truncated", "altered", "gone"])
def test_damage_is_set_aside_and_computed_again(store: Store, part: str, damage: str) -> None:
    store.put("k", RESULT)
    s3 = client(store.endpoint)
    listed = s3.list_objects_v2(Bucket=store.bucket, Prefix=store._name("jobs/k/"))["Contents"]
    (name,) = (e["Key"] for e in listed if e["Key"].endswith(".json") == (part == "result.json"))
    data = s3.get_object(Bucket=store.bucket, Key=name)["Body"].read()
    if damage == "gone":
        s3.delete_object(Bucket=store.bucket, Key=name)
    else:
        bad = data[:-3] if damage == "truncated" else data[:-2] + b"!!"
        s3.put_object(Bucket=store.bucket, Key=name, Body=bad)
    if part == "result.json" and damage == "gone":
        assert store.get("k") is None
    else:
        assert [name for name, _ in store.verify()] == ["jobs/k/result.json"]
        with pytest.warns(UserWarning, match="damaged .*: set aside"):
            assert store.get("k") is None
    assert store.put("k", RESULT)
    assert same(store.get("k"), RESULT)


def test_inputs_are_verified_copies(store: Store, tmp_path: Path) -> None:
    name = digest(b"content")
    store.upload_input(name, b"content")
    local = store.fetch_input(name, tmp_path)
    assert local.read_bytes() == b"content"
    client(store.endpoint).put_object(
        Bucket=store.bucket, Key=store._name(f"inputs/{name}"), Body=b"other"
    )
    assert store.fetch_input(name, tmp_path).read_bytes() == b"content"
    with pytest.raises(DamagedResult, match="missing or damaged"):
        store.fetch_input(name, tmp_path / "elsewhere")
    assert not list((tmp_path / "elsewhere").glob("*"))
    store.upload_input(name, b"content")  # as the next run does
    assert store.fetch_input(name, tmp_path / "elsewhere").read_bytes() == b"content"


def test_an_input_that_is_cut_or_old_is_uploaded_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import modcap.tasks.storage.store as module

    name = digest(b"content")
    place = {"Bucket": store.bucket, "Key": store._name(f"inputs/{name}")}
    for bad, age in ((b"cut", module._FRESH), (b"CONTENT", timedelta(0))):
        client(store.endpoint).put_object(**place, Body=bad)
        monkeypatch.setattr(module, "_FRESH", age)
        store.upload_input(name, b"content")
        assert store.fetch_input(name, tmp_path / bad.decode()).read_bytes() == b"content"


def test_local_copies_are_private_and_go_after_a_week(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = cache_folder("inputs")
    assert folder.parent.stat().st_mode & 0o077 == 0
    folder.mkdir()
    for name, days in (("old", 8), ("young", 6)):
        (folder / name).write_bytes(b"")
        then = time.time() - days * 86400
        os.utime(folder / name, (then, then))
    assert [file.name for file in cache_folder("inputs").iterdir()] == ["young"]


def test_a_lease_that_ran_out_is_not_taken_back(store: Store) -> None:
    first, second = (Lease(store, "leases/one.json") for _ in range(2))
    assert first.take()
    assert not second.take()
    first.check()
    held = store.get_document("leases/one.json")
    assert held is not None
    later = json.dumps(json.loads(held[0]) | {"until": time.time() + 99}).encode()
    store.put_document("leases/one.json", later)  # a renewal whose answer was lost
    assert first._write(only_if=held[1])
    store.delete_document("leases/one.json")  # as if its time had run out
    assert second.take()
    stop = threading.Event()
    thread = threading.Thread(target=first.renew, args=(stop,))
    lease_module._TERM, term = 0.1, lease_module._TERM
    try:
        thread.start()
        thread.join(timeout=20)  # it ends by itself: the lease is another one's
    finally:
        lease_module._TERM = term
    assert not thread.is_alive()
    with pytest.raises(ModcapError, match="lost to another process"):
        first.check()
    second.check()
    second.give_back()
    assert store.get_document("leases/one.json") is None


def test_objects_are_fetched_by_address(store: Store, tmp_path: Path) -> None:
    store.put_document("models/net.pth", b"one")
    address = f"s3://{store.bucket}/{store.prefix}/models/net.pth"
    assert fetch(address, tmp_path).read_bytes() == b"one"
    store.put_document("models/net.pth", b"two")
    second = fetch(address, tmp_path)
    assert (second.name, second.read_bytes()) == ("net.pth", b"two")
    with pytest.raises(InputError, match=r"s3://.*nothing\.pth: cannot be read"):
        fetch(address.replace("net", "nothing"), tmp_path)


def test_local_copies_are_verified_whenever_they_are_used(store: Store, tmp_path: Path) -> None:
    name = digest(b"content")
    store.upload_input(name, b"content")
    store.put_document("models/net.pth", b"weights")
    address = f"s3://{store.bucket}/{store.prefix}/models/net.pth"
    for local in (store.fetch_input(name, tmp_path), fetch(address, tmp_path)):
        local.write_bytes(b"swapped")
    assert store.fetch_input(name, tmp_path).read_bytes() == b"content"
    assert fetch(address, tmp_path).read_bytes() == b"weights"


class Breaking:
    """A body that breaks off once, as a connection does, and is whole after that."""

    def __init__(self, body: Any, failures: list[Exception]) -> None:
        self._body, self._failures = body, failures

    def read(self, *size: int) -> bytes:
        if self._failures:
            raise self._failures.pop()
        return bytes(self._body.read(*size))

    def close(self) -> None:
        self._body.close()

    def iter_chunks(self, size: int) -> Iterator[bytes]:
        yield self.read(3)
        while chunk := self.read(size):
            yield chunk


def test_a_body_that_breaks_off_is_read_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = digest(b"content")
    store.upload_input(name, b"content")
    store.put_document("models/net.pth", b"weights")
    address = f"s3://{store.bucket}/{store.prefix}/models/net.pth"
    breaks = [
        IncompleteReadError(actual_bytes=3, expected_bytes=7),
        ResponseStreamingError(error="reset"),
        ReadTimeoutError(endpoint_url="here"),
    ]
    failures: list[Exception] = []
    s3 = client(store.endpoint)
    whole = s3.get_object

    def get_object(**asked: Any) -> dict[str, Any]:
        found = dict(whole(**asked))
        return found | {"Body": Breaking(found["Body"], failures)}

    monkeypatch.setattr(s3, "get_object", get_object)
    for error in breaks:
        failures[:] = [error]
        assert store.get_document("models/net.pth") is not None
        failures[:] = [error]
        assert store.fetch_input(name, tmp_path / error.__class__.__name__).name == name
        failures[:] = [error]
        local = fetch(address, tmp_path / f"fetched-{error.__class__.__name__}")
        assert local.read_bytes() == b"weights"
        failures[:] = [error]
        assert list(store.verify()) == []
    assert not list(tmp_path.glob("**/tmp*"))  # nothing half-written


def test_a_large_input_never_lies_in_memory(store: Store, tmp_path: Path) -> None:
    data = os.urandom(96 << 20)
    name = digest(data)
    store.upload_input(name, data)
    del data
    tracemalloc.start()
    try:
        store.fetch_input(name, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


def test_who_is_second_goes_on_with_the_first_result(store: Store) -> None:
    first, second = (Result({"a": torch.tensor([i])}, {"writer": i}) for i in range(2))
    assert same(store.settle("k", first), first)
    assert same(store.settle("k", second), first)


def test_what_is_read_as_damaged_is_set_aside_and_nothing_newer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker puts a good result there between the read and the removal."""
    store.put("k", RESULT)
    document = store.get_document("jobs/k/result.json")
    assert document is not None
    store.put_document("jobs/k/result.json", b"{}")
    complete = Store._complete

    def meanwhile(self: Store, key: str, found: bytes) -> Result:
        self.put_document("jobs/k/result.json", document[0])
        return complete(self, key, found)

    monkeypatch.setattr(Store, "_complete", meanwhile)
    with pytest.warns(UserWarning, match="set aside"):
        assert store.get("k") is None
    monkeypatch.undo()
    found = store.get_document("jobs/k/result.json")
    assert found is not None
    assert found[0] == document[0]


def test_an_artifact_is_stored_under_its_own_digest_alone(store: Store) -> None:
    with pytest.raises(DamagedResult, match="not what its digest says"):
        store.put_artifact(digest(b"one"), b"two")
    address = store.put_artifact(digest(b"one"), b"one")
    store.put_document(f"artifacts/{digest(b'one')}.safetensors", b"two")
    assert store.put_artifact(digest(b"one"), b"one") == address
    assert list(store.verify()) == []


def test_wrong_credentials_are_one_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import modcap.tasks.storage.s3 as module

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    module._client.cache_clear()
    try:
        with pytest.raises(InputError, match=r"S3 at .*check the endpoint, the credentials"):
            store.ensure_bucket()
    finally:
        module._client.cache_clear()


def test_unreachable_server_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store._ensure_bucket.retry, "stop", stop_after_delay(2))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(InputError, match=r"S3 at http://127\.0\.0\.1:9"):
        Store("bucket", "", "http://127.0.0.1:9").ensure_bucket()
