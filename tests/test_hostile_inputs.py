"""Whatever a file holds, it is read, or refused with one line: within little memory and time."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib import format as npy
from PIL import Image
from torch import Tensor

from modcap import zoo
from modcap.checkpoints import _torchvision, checkpoint
from modcap.core.errors import InputError
from modcap.data import arrays
from modcap.data import sources as data
from modcap.data.preprocess import Preprocess
from modcap.flows.requests.documents import read_mapping
from modcap.flows.requests.scan_policy import read_policy
from modcap.recipe import Recipe

ARCH = "modcap.zoo:vgg_tiny"
GRAY = Preprocess(mean=(0.5,), std=(0.25,))
WEIGHT = "0.weight"


def refused(act: Callable[[], object], *words: str) -> None:
    with pytest.raises(InputError) as caught:
        act()
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 600
    for word in words:
        assert word in line


def saved(path: Path, change: Callable[[Tensor], Any]) -> Path:
    """A checkpoint whose first weight is what ``change`` makes of it."""
    tensors = dict(zoo.vgg_tiny().state_dict())
    tensors[WEIGHT] = change(tensors[WEIGHT])
    torch.save(tensors, path)
    return path


# --- tensors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.reshape(len(t), -1).to_sparse(), ["sparse", "to_dense"]),
        (lambda t: t.reshape(len(t), -1).to_sparse_csr(), ["sparse", "to_dense"]),
        (lambda t: t.to(torch.float8_e4m3fn), ["float8_e4m3fn", "float32"]),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), ["quantized", "before"]),
        (lambda t: torch.nested.nested_tensor([t[0], t[1]]), ["nested"]),
        (lambda t: t.to("meta"), ["meta", "without values"]),
        (lambda t: t.to(torch.complex64), ["complex64"]),
        (lambda t: (100 * t).to(torch.int8), ["int8", "float32", "before it was quantized"]),
        (lambda t: t > 0, ["bool", "float32"]),
        (lambda t: t.double() * 1e300, ["NaN or infinite"]),
        (lambda t: t[:1, :1, :1, :1].expand(2**20, 2**20, 3, 3), ["larger than what is stored"]),
        (lambda t: torch.empty(10**12, 0), ["of another shape"]),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch's, that such tensors are experiments
def test_tensors_that_are_no_weights_are_named(
    tmp_path: Path, change: Callable[[Tensor], Any], words: list[str]
) -> None:
    path = saved(tmp_path / "w.pth", change)
    refused(lambda: checkpoint.load(path, ARCH), WEIGHT, *words)


def test_an_integer_where_the_network_has_one_may_be_written_as_a_float(tmp_path: Path) -> None:
    tensors = dict(zoo.vgg_tiny().state_dict())
    counts = [name for name in tensors if name.endswith("num_batches_tracked")]
    tensors |= {name: torch.tensor(12.5) for name in counts}  # averaged with the weights
    torch.save(tensors, tmp_path / "w.pth")
    assert checkpoint.load(tmp_path / "w.pth", ARCH)


@pytest.mark.parametrize(("size", "stride"), [(4, 10**12), (10**12, 0), (10**12, 1), (-4, 1)])
def test_sizes_and_strides_beyond_the_storage(tmp_path: Path, size: int, stride: int) -> None:
    buffer = io.BytesIO()
    torch.save({WEIGHT: torch.arange(4.0)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    shape = b"K\x04\x85q\x08K\x01\x85q"  # (4,), (1,) as torch writes them
    assert shape in members[name]
    forged = [b"\x8a\x08" + struct.pack("<q", number) for number in (size, stride)]
    members[name] = members[name].replace(shape, forged[0] + b"\x85q\x08" + forged[1] + b"\x85q")
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    refused(lambda: checkpoint.load(tmp_path / "w.pt", ARCH))


def test_an_archive_that_inflates(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({WEIGHT: torch.zeros(2**22)}, buffer)
    with (
        zipfile.ZipFile(buffer) as old,
        zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refused(lambda: checkpoint.load(tmp_path / "w.pt", ARCH), "more than its size")


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b'{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}',
        b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","shape":[0,4611686018427387904,16],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
    ],
)
def test_headers_of_safetensors(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    refused(lambda: checkpoint.load(path, ARCH), path.name)
    path.write_bytes((2**60).to_bytes(8, "little") + header)
    refused(lambda: checkpoint.load(path, ARCH), path.name)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_network_that_asks_for_the_version_of_its_form(tmp_path: Path, suffix: str) -> None:
    built = _torchvision.models().get_model("mnasnet0_5", weights=None).eval()
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        parallel = torch.nn.DataParallel(built)
        torch.save({"state_dict": parallel.state_dict()}, path)
    else:
        from safetensors.torch import save_file

        save_file(built.state_dict(), path)
    found = checkpoint.load(path, "torchvision:mnasnet0_5").model
    x = torch.randn(1, 3, 64, 64)
    assert isinstance(found, torch.nn.Module)
    assert torch.equal(found(x), built(x))


def test_a_network_that_does_not_take_its_own_weights(tmp_path: Path) -> None:
    tensors = _torchvision.models().get_model("mnasnet0_5", weights=None).state_dict()
    tensors._metadata[""]["version"] = "three"  # type: ignore[attr-defined]
    torch.save(tensors, tmp_path / "w.pth")
    refused(lambda: checkpoint.load(tmp_path / "w.pth", "torchvision:mnasnet0_5"), "version")


# --- files that are none


def special(folder: Path, kind: str, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        here = Path.cwd()
        os.chdir(folder)  # a socket's address is short
        try:
            socket.socket(socket.AF_UNIX).bind(name)
        finally:
            os.chdir(here)
    return path


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("kind", ["fifo", "device", "socket"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    for name in ("w.pth", "w.pt2"):
        path = special(tmp_path, kind, name)
        refused(lambda path=path: checkpoint.load(path, None if "pt2" in path.name else ARCH), name)  # type: ignore[misc]
    npz = special(tmp_path, kind, "d.npz")
    refused(lambda: data.load(str(npz), split="all", preprocess=GRAY), "regular")
    recipe = special(tmp_path, kind, "r.yaml")
    refused(lambda: read_mapping(recipe, "recipe"), "regular")
    refused(lambda: Preprocess.parse(str(recipe)), "regular")
    special(tmp_path / "folder" / "bag", kind, "a.png")
    refused(
        lambda: data.load(str(tmp_path / "folder"), split="all", preprocess=GRAY),
        "a.png",
        "regular",
    )
    idx = special(tmp_path / "idx", kind, "t10k-images-idx3-ubyte")
    refused(lambda: data.load(f"fashion-mnist:{idx.parent}", split="all", preprocess=GRAY))


# --- arrays


def npz(path: Path, images: bytes, labels: bytes = b"", compress: bool = True) -> str:
    if not labels:
        buffer = io.BytesIO()
        np.save(buffer, np.arange(40))
        labels = buffer.getvalue()
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("images.npy", images)
        archive.writestr("labels.npy", labels)
    return str(path)


def header(descr: Any, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    npy.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("images", "word"),
    [
        (header("|u1", (300_000_000_000_000, 1, 1, 1)), "declares shape"),
        (header("|u1", (40, 1, 28, 28)) + bytes(9), "declares shape"),
        (header("|u1", (-40, 1, 1, 1)), "declares shape"),
        (header("|u1", (10**12, 0, 1, 1)), "declares shape"),
        (header("|O", (40,)), "objects of Python"),
        (header("|u1", (100 * 2**20, 1, 1, 1)) + bytes(100 * 2**20), "more than 100 times"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "cannot be read"),
        (b"\x93NUMPY\x09\x00", "version"),
        (b"", "cannot be read"),
    ],
)
def test_arrays_that_declare_what_is_not_there(tmp_path: Path, images: bytes, word: str) -> None:
    spec = npz(tmp_path / "d.npz", images)
    refused(lambda: data.load(spec, split="all", preprocess=GRAY), "d.npz", word)


def test_arrays_larger_than_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "d.npz", images=np.zeros((40, 1, 8, 8), np.uint8), labels=np.arange(40))
    spec = str(tmp_path / "d.npz")
    assert len(data.load(spec, split="all", preprocess=GRAY)) == 40
    monkeypatch.setattr(arrays, "_memory", lambda: 2000)
    refused(lambda: data.load(spec, split="all", preprocess=GRAY), "this machine has", "fewer")


def test_labels_beyond_every_class(tmp_path: Path) -> None:
    labels = np.full(4, 2**64 - 1, np.uint64)
    np.savez(tmp_path / "d.npz", images=np.zeros((4, 1, 2, 2), np.uint8), labels=labels)
    refused(lambda: data.load(str(tmp_path / "d.npz"), split="all", preprocess=GRAY), "no class")


def test_an_idx_file_that_inflates(tmp_path: Path) -> None:
    packer = zlib.compressobj(wbits=31)
    raw = b"".join(packer.compress(bytes(2**24)) for _ in range(17)) + packer.flush()
    for name in ("images-idx3", "labels-idx1"):
        (tmp_path / f"t10k-{name}-ubyte.gz").write_bytes(raw)
    spec = f"fashion-mnist:{tmp_path}"
    refused(lambda: data.load(spec, split="all", preprocess=GRAY), "grows to more")


# --- images


def png(width: int, height: int) -> bytes:
    """Declares a size; the pixels are black."""
    body = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 1) * min(height, 2)))
    out = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", body), (b"IDAT", rows), (b"IEND", b"")):
        checked = kind + content
        out += struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))
    return out


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (png(60_000, 1), "15360000 × 256 pixels"),
        (png(60_000, 60_000), "cannot be read"),
        (png(10_000, 10_000), "10000 × 10000 pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read"),
        (b"", "cannot be read"),
        (png(99, 99)[:45], "cannot be read"),
    ],
)
def test_images_that_grow_are_broken_or_are_none(tmp_path: Path, content: bytes, word: str) -> None:
    (tmp_path / "bag").mkdir()
    (tmp_path / "bag" / "a.png").write_bytes(content)
    resize = Preprocess(resize=256, crop=224, mean=(0.5,), std=(0.25,))
    refused(lambda: data.load(str(tmp_path), split="all", preprocess=resize), "a.png", word)


def test_what_tools_leave_behind_is_no_class_and_no_image(tmp_path: Path) -> None:
    for name in ("a", "b", ".ipynb_checkpoints", "__MACOSX", ".git"):
        (tmp_path / name / ".hidden").mkdir(parents=True)
        (tmp_path / name / "folder.png").mkdir()
        (tmp_path / name / "._0.png").write_bytes(b"resource fork")
        (tmp_path / name / ".hidden" / "0.png").write_bytes(b"none")
        Image.new("L", (4, 4)).save(tmp_path / name / "0.png")
    found = data.load(str(tmp_path), split="all", preprocess=GRAY)
    assert sorted(found.labels) == [0, 1]


# --- documents

LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 20)
)
MERGES = "a0: &a0 {k0: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: *a{i - 1}, k{i}: 1}}\n" for i in range(1, 3000)
)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[" * 3000, "nested deeper"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested deeper"),
        ("{a: " * 3000, "nested deeper"),
        (LAUGHS, "stands for more"),
        (MERGES, "stands for more"),
        ("a: &a [*a]", "nested deeper"),
        ("w_bits: 2\nw_bits: 3", "twice"),
        ("w_bits: !!timestamp 2024-13-45", "tag"),
        ("w_bits: !!python/object/apply:os.system [id]", "tag"),
        ("w_bits: !!int x", "invalid literal"),
        ("w_bits: " + "9" * 5000, "too long"),
        ("w_bits: " + "9" * 50, "too large"),
        ("w_bits: .nan", "no finite"),
        ("w_bits: 1.0e+400", "no finite"),
        ("? [1]\n: 2", "unhashable"),
        ('w_bits: "\\ud800"', "surrogates"),
        ("- 1", "mapping"),
        ("", "mapping"),
        ("x: 1\n" * 100_000, "at most"),
        ("\x1b[31m: [", "cannot be read"),
    ],
)
def test_documents(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    refused(lambda: read_mapping(path, "recipe r.yaml"), "recipe r.yaml", word)


def test_json_documents(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    for text, word in [
        ('{"a": 1, "a": 2}', "twice"),
        ('{"a": NaN}', "no finite"),
        ('{"a": 1e400}', "no finite"),
        ("[" * 100_000, "nested deeper"),
        ('{"a": ' * 60 + "1" + "}" * 60, "nested deeper"),
    ]:
        path.write_text(text)
        refused(lambda: read_mapping(path, "recipe"), word)
    path.write_text(json.dumps({"w_bits": 2}, indent="\t"))
    assert read_mapping(path, "recipe") == {"w_bits": 2}


def test_what_people_write_is_read_as_before(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "base: &b {w_bits: 2}\nmore: {<<: *b, a_bits: 4}\nday: 2024-01-01\nrate: 1e-3\n"
    )
    found = read_mapping(path, "recipe")
    assert found["more"] == {"w_bits": 2, "a_bits": 4}
    assert (found["day"], found["rate"]) == ("2024-01-01", "1e-3")


def test_a_date_where_a_recipe_has_a_number(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("w_bits: 2024-13-45")
    refused(lambda: Recipe.make(read_mapping(path, "recipe")), "w_bits", "2024-13-45")


@pytest.mark.parametrize(
    "values",
    [
        {"optimiser": [1]},
        {1: 2},
        {"optimiser": {"\n\x1b[2J": 1}},
        {"w_bits": 1e400},
        {"seed": 10**400},
        {"groups": {"a": 1}},
        {"k": float("nan")},
        {"x" * 10_000: 1},
    ],
)
def test_recipes_of_any_values(values: dict[Any, Any]) -> None:
    refused(lambda: Recipe.make(values), "recipe")


def test_policies_of_any_form(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    for text in (
        "rules: 3",
        "rules: [{recipes: [{fields: 3}]}]",
        "rules: [{recipes: [{fields: {optimiser: {1: 2}}}]}]",
        "rules: [{recipes: [{preset: [x]}]}]",
        "rules: [{recipes: [{fields: {? null : 1}}]}]",
        "rules: []\nsettle_seconds: .inf",
    ):
        path.write_text(text)
        refused(lambda: read_policy(path), "p.yaml")


def test_broken_preprocessing_files(tmp_path: Path) -> None:
    for name, text in (("p.json", "{"), ("p.yaml", "[" * 3000), ("p.yml", "mean: 2024-99-99")):
        (tmp_path / name).write_text(text)
        refused(lambda name=name: Preprocess.parse(str(tmp_path / name)), name)  # type: ignore[misc]


def test_a_pickle_of_anything_but_tensors(tmp_path: Path) -> None:
    path = tmp_path / "w.pkl.pth"
    for value in (3, "x", [torch.ones(1)], {"a": {"b": torch.ones(1)}}, None):
        path.write_bytes(pickle.dumps(value))
        refused(lambda: checkpoint.load(path, ARCH), path.name)
        torch.save(value, path)
        refused(lambda: checkpoint.load(path, ARCH), path.name)
