"""Hostile objects among good ones: each is set aside with its reason, and stops no other."""

from __future__ import annotations

import io
import json
import os
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy
import pytest
import torch
import yaml
from safetensors.torch import save
from torch import nn

from tests.integration.commands import modcap_command
from tests.integration.test_scan import NETWORK, POLICY, safetensors, states, versions, weights
from tests.integration.test_scan import s3 as s3

GOOD = [f"hostile-good{n}.safetensors" for n in range(5)]
OTHER = "hostile-owned"  # a registered model of another object


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def with_first(change: Any) -> bytes:
    """Pickled weights, one of which is changed into another kind of tensor."""
    changed = dict(weights(1))
    name = next(n for n in changed if n.endswith("weight") and changed[n].ndim == 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kinds of tensors that torch gives up
        changed[name] = change(changed[name])
    return saved(changed)


def huge_npz() -> bytes:
    """An array of 273 TiB, of which only the header is there."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        header = io.BytesIO()
        numpy.lib.format.write_array_header_1_0(
            header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 3, 316, 316)}
        )
        archive.writestr("images.npy", header.getvalue())
        archive.writestr("labels.npy", b"")
    return buffer.getvalue()


ZEROS = bytes(1 << 20)


class Deflated:
    """Stands in for the compressor of zipfile: what is written again is deflated once."""

    def __init__(self, *settings: object) -> None:
        self._known: dict[bytes, bytes] = {}

    def compress(self, data: bytes) -> bytes:
        if data not in self._known:
            packer = zlib.compressobj(wbits=-15)
            self._known[data] = packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH)
        return self._known[data]

    def flush(self) -> bytes:
        return zlib.compressobj(wbits=-15).flush()


def zipped(entries: dict[str, tuple[bytes, int]]) -> bytes:
    """A zip of entries that begin with some bytes, and go on with so many zeros."""
    buffer = io.BytesIO()
    with (
        patch("zipfile._get_compressor", Deflated),
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name, (start, size) in entries.items():
            with archive.open(name, "w", force_zip64=True) as entry:
                entry.write(start)
                for _ in range(size >> 20):
                    entry.write(ZEROS)
                entry.write(bytes(size & 0xFFFFF))
    return buffer.getvalue()


def deflated(name: str, size: int) -> bytes:
    """A zip of one entry of so many zeros, a thousandth of it in bytes."""
    return zipped({name: (b"", size)})


def images_bomb(size: int) -> bytes:
    """An .npz of ``size`` bytes of black images, honestly declared, a thousandth of it in bytes."""
    count = size // 784
    entries = {}
    for name, shape in (("images", (count, 1, 28, 28)), ("labels", (count,))):
        header = io.BytesIO()
        numpy.lib.format.write_array_header_1_0(
            header, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        entries[f"{name}.npy"] = (header.getvalue(), int(numpy.prod(shape)))
    return zipped(entries)


def with_header(length: int) -> bytes:
    """safetensors that declare a header of so many bytes."""
    return struct.pack("<Q", length) + b"{" + b" " * 1000


class Huge(nn.Module):
    """A small file that wants 64 GiB to compute."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(2704, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "ones":
            return self.layers(x) + torch.ones(2**34).sum()
        more = x.repeat(1, 256, 1, 1).repeat(1, 1, 256, 1).repeat(1, 1, 1, 256)
        return self.layers(x + more.mean())


def archive_of(how: str) -> bytes:
    buffer = io.BytesIO()
    batch = torch.export.Dim("batch", min=1)
    shapes = {"x": {0: batch}}
    program = torch.export.export(
        Huge(how).eval(), (torch.zeros(2, 1, 28, 28),), dynamic_shapes=shapes
    )
    torch.export.save(program, buffer)
    return buffer.getvalue()


GRAY = "preprocess: mean=0.5,std=0.5"
FACTORIES = ("os:abort", "sys:exit", "signal:pause", "torch.hub:load", "modcap.zoo:regnet_tiny")
TENSORS = {
    "sparse": lambda t: t.to_sparse(),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "meta": lambda t: t.to("meta"),
    "complex": lambda t: t.to(torch.complex64),
    "int8": lambda t: (100 * t).to(torch.int8),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "nested": lambda t: torch.nested.nested_tensor(list(t)),
}
MANIFESTS: dict[str, str] = {
    "name": f"name: {GOOD[0].removesuffix('.safetensors')}",
    "owned": f"name: {OTHER}",
    "data": "data: s3://elsewhere/images.npz",
    "local": "data: /etc",
    "folder": "data: fashion-mnist:/etc",
    "dots": "data: s3://BUCKET/images/../secret.npz",
    "sibling": "data: s3://BUCKET/images-rejected/a.npz",
    "preprocess": "preprocess: /etc/passwd.json",
    "brackets": "name: " + "[" * 3000,
    "date": "bytes: 2026-99-99",
    "unknown": "preset: slow",
    "list": "- name",
}


@pytest.mark.timeout(600)
def test_hostile_objects_stop_no_good_one(stack: dict[str, str], s3: Any, tmp_path: Path) -> None:
    bucket, prefix = stack["MODCAP_BUCKET"], "incoming/hostile"

    def put(name: str, data: bytes, place: str = prefix) -> None:
        s3.put_object(Bucket=bucket, Key=f"{place}/{name}", Body=data)

    policy = tmp_path / "policy.yaml"
    policy.write_text(
        yaml.dump(
            POLICY
            | {"factories": [f"modcap.zoo:{NETWORK}"], "data_below": [f"s3://{bucket}/images"]}
        )
    )

    def scan(code: int, place: str = prefix) -> dict[str, Any]:
        arguments = ["scan", "--json", f"s3://{bucket}/{place}", "--policy", str(policy)]
        done = modcap_command(stack, *arguments, MODCAP_PREFIX="hostile", MODCAP_ISOLATED_GIB="2")
        assert done.returncode == code, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    put(f"{OTHER}.safetensors", safetensors(40), "incoming/first")
    assert [row["state"] for row in scan(0, "incoming/first")["checkpoints"]] == ["registered"]

    put("rejected.safetensors", safetensors(41), "incoming/hostile-rejected")
    for number, name in enumerate(GOOD):
        put(name, safetensors(number))
    bad = []

    def put_bad(name: str, data: bytes, manifest: str = "") -> None:
        put(name, data)
        bad.append(name)
        if manifest:
            stem = name.rsplit(".", 1)[0]
            put(f"{stem}.modcap.yaml", manifest.replace("BUCKET", bucket).encode())

    for number, factory in enumerate(FACTORIES):
        put_bad(f"hostile-factory{number}.safetensors", safetensors(number, factory))
        put_bad(f"hostile-arch{number}.pt", saved(weights(number)), f"arch: '{factory}'")
    for name, manifest in MANIFESTS.items():
        put_bad(f"hostile-{name}.safetensors", safetensors(9), manifest)
    for name, change in TENSORS.items():
        put_bad(f"hostile-{name}.pt", with_first(change), f"arch: modcap.zoo:{NETWORK}")
    put_bad("hostile-#?.safetensors", save({"x": torch.zeros(1)}, {"architecture": "os:abort"}))
    s3.put_object(Bucket=bucket, Key="images/huge.npz", Body=huge_npz())
    put_bad("hostile-huge.safetensors", safetensors(8), "data: s3://BUCKET/images/huge.npz")
    s3.put_object(Bucket=bucket, Key="images/bomb.npz", Body=images_bomb(3 << 30))
    put_bad("hostile-bomb.safetensors", safetensors(7), "data: s3://BUCKET/images/bomb.npz")
    s3.put_object(Bucket=bucket, Key="images/inflates.npz", Body=deflated("images.npy", 1 << 30))
    put_bad("hostile-inflates.safetensors", safetensors(6), "data: s3://BUCKET/images/inflates.npz")
    put_bad("hostile-zip.pt", deflated("archive/data.pkl", 1 << 30), f"arch: modcap.zoo:{NETWORK}")
    put_bad("hostile-zip.pt2", deflated("archive/models/model.json", 1 << 30), GRAY)
    for how in ("ones", "repeats"):
        put_bad(f"hostile-{how}.pt2", archive_of(how), GRAY)
    for length in (10, 2**20, 2**63):
        put_bad(f"hostile-header{length}.safetensors", with_header(length))
    put_bad("hostile-empty.safetensors", b"")
    put_bad("hostile-noise.pt2", bytes(range(256)) * 40, GRAY)

    first = scan(0)
    reasons = {r["checkpoint"].rsplit("/", 1)[1]: r["reason"] for r in first["checkpoints"]}
    assert states(first) == dict.fromkeys(GOOD, "registered") | dict.fromkeys(bad, "bad"), reasons
    assert all(reasons[name] and "\n" not in reasons[name] for name in bad)
    assert all("not for an uploader" in reasons[n] for n in bad if "factory" in n or "arch" in n)
    assert f"belongs to s3://{bucket}/incoming/first" in reasons["hostile-owned.safetensors"]
    made = {f"{name.removesuffix('.safetensors')}-w4a4": 1 for name in GOOD}
    assert versions(stack, "hostile-") == made | {f"{OTHER}-w4a4": 1}

    second = scan(0)
    assert second["executed"] == 0
    assert states(second) == dict.fromkeys(GOOD, "known") | dict.fromkeys(bad, "bad")


@pytest.mark.timeout(300)
def test_images_of_a_manifest_lie_where_the_policy_says(
    stack: dict[str, str], s3: Any, tmp_path: Path
) -> None:
    bucket = stack["MODCAP_BUCKET"]
    images = io.BytesIO()
    numpy.savez(images, images=numpy.zeros((80, 1, 28, 28), "u1"), labels=numpy.arange(80) % 10)
    place = "allowed/images #1?.npz"
    s3.put_object(Bucket=bucket, Key=place, Body=images.getvalue())
    s3.put_object(Bucket=bucket, Key="incoming/images/own.safetensors", Body=safetensors(50))
    manifest = yaml.dump({"data": f"s3://{bucket}/{place}"}).encode()
    s3.put_object(Bucket=bucket, Key="incoming/images/own.modcap.yaml", Body=manifest)

    def scan(**fields: Any) -> dict[str, Any]:
        policy = tmp_path / "policy.yaml"
        policy.write_text(yaml.dump(POLICY | fields))
        arguments = ["scan", "--json", f"s3://{bucket}/incoming/images", "--policy", str(policy)]
        done = modcap_command(stack, *arguments, MODCAP_PREFIX="images")
        assert done.returncode == 0, done.stderr
        (row,) = json.loads(done.stdout)["checkpoints"]
        return dict(row)

    s3.delete_object(Bucket=bucket, Key=place)
    assert scan(data_below=[f"s3://{bucket}/allowed"])["state"] == "waiting"
    s3.put_object(Bucket=bucket, Key=place, Body=images.getvalue())
    assert "data_below" in scan()["reason"]
    assert scan()["state"] == "bad"
    assert scan(data_below=[f"s3://{bucket}/allowed"])["state"] == "registered"
    assert scan()["state"] == "known"


@pytest.mark.timeout(400)
def test_what_ends_its_process_or_never_ends_costs_one_checkpoint(
    stack: dict[str, str], s3: Any, tmp_path: Path
) -> None:
    """Code that the policy lists may be as bad as files: it ends no scan."""
    bucket, prefix = stack["MODCAP_BUCKET"], "incoming/ending"
    kinds = {"abort": "os:abort", "exit": "sys:exit", "pause": "signal:pause"}
    for number, (name, factory) in enumerate(kinds.items()):
        key = f"{prefix}/ending-{name}.safetensors"
        s3.put_object(Bucket=bucket, Key=key, Body=safetensors(number, factory))
    for name in ("good", "fifo"):
        key = f"{prefix}/ending-{name}.safetensors"
        s3.put_object(Bucket=bucket, Key=key, Body=safetensors(60))
    folder = tmp_path / "images"
    (folder / "bag").mkdir(parents=True)
    os.mkfifo(folder / "bag" / "a.png")
    waits = POLICY["rules"][0] | {"match": "*fifo*", "data": str(folder)}
    policy = tmp_path / "policy.yaml"
    rules = {"rules": [waits, *POLICY["rules"]]}
    policy.write_text(
        yaml.dump(POLICY | rules | {"factories": [*kinds.values(), f"modcap.zoo:{NETWORK}"]})
    )

    arguments = ["scan", "--json", f"s3://{bucket}/{prefix}", "--policy", str(policy)]
    limits = {"MODCAP_ISOLATED_SECONDS": "25"}
    done = modcap_command(stack, *arguments, MODCAP_PREFIX="ending", **limits)
    assert done.returncode == 1, done.stderr  # the images of the policy may be mended
    first = json.loads(done.stdout)
    reasons = {r["checkpoint"].rsplit("/", 1)[1]: r["reason"] for r in first["checkpoints"]}
    assert {name[7:-12]: state for name, state in states(first).items()} == {
        **dict.fromkeys(kinds, "bad"),
        "good": "registered",
        "fifo": "failed",
    }, reasons
    ended = "it cannot be used: its process was ended by SIGABRT while reading its checkpoint"
    assert reasons["ending-abort.safetensors"] == ended
    assert "it took longer than 25 s" in reasons["ending-pause.safetensors"]
    assert "SystemExit" in reasons["ending-exit.safetensors"]
    assert "a.png" in reasons["ending-fifo.safetensors"]
