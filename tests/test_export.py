"""The formats: what is in the files, that it is small, and what is said of bad input."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import modcap
from modcap.core.errors import InputError, Unavailable
from modcap.export import EXPORTERS, Export, Known, require, save
from modcap.export.artifact import unpack_network
from modcap.quantization.insert import layers_of
from tests.exports import artifact_of, initializers, operators, run_onnx

SHAPE = (3, 9, 10)
KNOWN = Known({"w_bits": 2}, {"source_digest": "ab" * 32}, "mean=0.5,std=0.25", ("cat", "dog"))


def network() -> nn.Module:
    """A grouped, a transposed and a plain convolution, a linear layer over tokens, a classifier."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.ReLU6(),
        nn.Conv2d(24, 24, 3, groups=4, bias=False),
        nn.ConvTranspose2d(24, 16, 3, bias=False),
        nn.Hardswish(),
        nn.Flatten(2),
        nn.Linear(90, 33),
        nn.Flatten(),
        nn.Linear(16 * 33, 5),
    ).eval()


@pytest.fixture(scope="module")
def artifacts() -> dict[tuple[int, int], bytes]:
    images = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    widths = [*((b, 10 - b) for b in range(2, 9)), (2, 2)]
    return {(w, a): artifact_of(network(), images, w, a) for w, a in widths}


Artifacts = dict[tuple[int, int], bytes]


@pytest.mark.parametrize("w", range(2, 9))
def test_every_width_agrees(artifacts: Artifacts, tmp_path: Path, w: int) -> None:
    """Weights of 2 to 8 bits beside activations of 8 to 2."""
    opset = {3: 21, 6: 13}.get(w, 25)
    artifact, file = artifacts[w, 10 - w], tmp_path / "n.onnx"
    said = save(Export(artifact, opset), "onnx", file)
    onnx.checker.check_model(onnx.load(file), full_check=True)
    images = torch.randn(50, *SHAPE)
    expected, found = unpack_network(artifact)(images), run_onnx(file, images)
    assert (found - expected).norm() <= 0.1 * expected.norm()
    assert said["compared_images"] == 4


@pytest.mark.parametrize(("opset", "width"), [(25, 2), (21, 4), (13, 8)])
def test_weights_take_their_bits(
    artifacts: Artifacts, tmp_path: Path, opset: int, width: int
) -> None:
    artifact, file = artifacts[2, 2], tmp_path / "n.onnx"
    said = save(Export(artifact, opset), "onnx", file)
    kind = getattr(onnx.TensorProto, f"UINT{width}")
    weights = [t for t in initializers(file).values() if t.name.endswith("weight")]
    assert len(weights) == 5
    for tensor in weights:
        assert tensor.data_type == kind
        assert len(tensor.raw_data) == math.ceil(math.prod(tensor.dims) * width / 8)
    model = onnx.load(file)
    assert [entry.version for entry in model.opset_import] == [opset]
    assert model.ir_version == {25: 13, 21: 10, 13: 7}[opset]
    assert ("note" in said) == (width > 2)
    if opset == 25:
        assert said["bytes"] <= 1.3 * len(artifact) + 4000  # names of nodes


def test_integers_are_those_of_the_artifact(artifacts: Artifacts, tmp_path: Path) -> None:
    save(Export(artifacts[4, 6]), "onnx", tmp_path / "n.onnx")
    stored = [t for t in initializers(tmp_path / "n.onnx").values() if t.name.endswith("weight")]
    layers = layers_of(unpack_network(artifacts[4, 6]).modules_in_order)
    for tensor, layer in zip(stored, layers, strict=True):
        assert layer.integers is not None
        found = onnx.numpy_helper.to_array(tensor).astype(np.uint8)
        assert np.array_equal(found, layer.integers.numpy())


def test_no_tensor_of_weights_is_float(artifacts: Artifacts, tmp_path: Path) -> None:
    save(Export(artifacts[4, 6]), "onnx", tmp_path / "n.onnx")
    floats = [t for t in initializers(tmp_path / "n.onnx").values() if t.data_type == 1]
    assert max(math.prod(t.dims) for t in floats) <= 33  # scales and biases of channels
    assert not {"Round", "Floor"} & set(operators(tmp_path / "n.onnx"))


def test_names_and_metadata_are_the_models_own(artifacts: Artifacts, tmp_path: Path) -> None:
    file = tmp_path / "n.onnx"
    save(Export(artifacts[4, 6], known=KNOWN), "onnx", file)
    model = onnx.load(file)
    props = {entry.key.removeprefix("modcap."): entry.value for entry in model.metadata_props}
    assert props.pop("artifact_digest") == Export(artifacts[4, 6]).digest
    assert json.loads(props.pop("bits")) == {"weights": {"4": 5}, "activations": {"6": 5}}
    assert json.loads(props.pop("recipe")) == {"w_bits": 2}
    assert json.loads(props.pop("classes")) == ["cat", "dog"]
    assert props == {"source_digest": "ab" * 32, "preprocess": "mean=0.5,std=0.25"}
    layers = unpack_network(artifacts[4, 6]).names
    nodes = [node.name for node in model.graph.node]
    assert len(set(nodes)) == len(nodes)
    for name in layers:
        assert any(node.startswith(name) for node in nodes)
    assert [
        d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim
    ] == [
        "batch",
        *SHAPE,
    ]


@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_nothing_tells_of_the_machine(artifacts: Artifacts, tmp_path: Path, name: str) -> None:
    save(Export(artifacts[4, 6]), name, tmp_path / "file")
    data = (tmp_path / "file").read_bytes()
    assert not re.search(
        rb"\.py\b|site-packages|/[a-z]+/[a-z]+/[a-z]+/|Traceback|modcap\.\w+\.",
        data.replace(b"modcap.artifact_digest", b""),
    )


@pytest.mark.parametrize("name", ["onnx", "encodings", "safetensors"])
def test_same_artifact_same_bytes(artifacts: Artifacts, tmp_path: Path, name: str) -> None:
    for file in ("a", "b"):
        save(Export(artifacts[2, 8]), name, tmp_path / file)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_pt2_runs_without_this_package(artifacts: Artifacts, tmp_path: Path) -> None:
    save(Export(artifacts[3, 7]), "pt2", tmp_path / "n.pt2")
    code = (
        "import sys, torch\n"
        "run = torch.export.load('n.pt2').module()\n"
        "images = torch.load('images.pt')\n"
        "torch.save([run(images[:n]) for n in (1, 3)], 'logits.pt')\n"
        "assert not [m for m in sys.modules if m.startswith('modcap')]\n"
    )
    images = torch.randn(3, *SHAPE)
    torch.save(images, tmp_path / "images.pt")
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)
    network = unpack_network(artifacts[3, 7])
    for count, logits in zip((1, 3), torch.load(tmp_path / "logits.pt"), strict=True):
        assert torch.allclose(logits, network(images[:count]), atol=1e-5)


def test_pt2_holds_integers(artifacts: Artifacts, tmp_path: Path) -> None:
    save(Export(artifacts[2, 8]), "pt2", tmp_path / "n.pt2")
    program = torch.export.load(tmp_path / "n.pt2")
    packed = {n: t for n, t in program.state_dict.items() if n.endswith("packed")}
    weights = sum(p.numel() for p in network().parameters() if p.ndim > 1)
    assert sum(t.numel() for t in packed.values()) <= weights // 4 + len(packed)
    assert all(t.dtype == torch.uint8 for t in packed.values())
    floats = [t for t in program.state_dict.values() if t.is_floating_point()]
    assert max(t.numel() for t in floats) <= 33


def test_encodings_name_the_tensors_of_the_onnx_form(artifacts: Artifacts, tmp_path: Path) -> None:
    save(Export(artifacts[3, 7]), "onnx", tmp_path / "n.onnx")
    save(Export(artifacts[3, 7]), "encodings", tmp_path / "n.json")
    document = json.loads((tmp_path / "n.json").read_text())
    assert document["version"] == "1.0.0"
    model = onnx.load(tmp_path / "n.onnx")
    values = {v for node in model.graph.node for v in node.output} | {"images"}
    entries = document["activation_encodings"]
    assert {entry["name"] for entry in entries} <= values
    assert {entry["bw"] for entry in entries} == {7}
    stored = initializers(tmp_path / "n.onnx")
    layers = layers_of(unpack_network(artifacts[3, 7]).modules_in_order)
    for entry, layer in zip(document["param_encodings"], layers, strict=True):
        assert entry["bw"] == 3
        assert stored[entry["name"]].dims[entry["axis"]] == len(entry["scale"])
        assert torch.equal(torch.tensor(entry["scale"]), layer.scale)
        assert torch.equal(-torch.tensor(entry["offset"]).float(), layer.zero_point)


def test_the_front_door_saves_and_exports(tmp_path: Path) -> None:
    images = torch.randn(8, *SHAPE)
    recipe = modcap.Recipe.preset("quick", method="rtn", k=0, calibration=8)
    done = modcap.quantize(network(), images, recipe)
    done.save(tmp_path / "n.safetensors")
    assert torch.equal(modcap.load(tmp_path / "n.safetensors")(images), done.network(images))
    said = done.export("onnx", tmp_path / "n.onnx")
    assert said["bytes"] == (tmp_path / "n.onnx").stat().st_size
    done.export("safetensors", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == done.artifact
    assert (tmp_path / "n.onnx").stat().st_mode & 0o777 == (
        tmp_path / "n.safetensors"
    ).stat().st_mode & 0o777


def test_a_wrong_graph_is_refused_with_place_and_figure(
    artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modcap.export import onnx_call

    hard_swish = torch.ops.aten.hardswish.default
    wrong = {hard_swish: lambda graph, call: graph.add("HardSigmoid", call.name("self"))}
    monkeypatch.setattr(onnx_call, "OPERATORS", onnx_call.OPERATORS)
    for operator, write in wrong.items():
        monkeypatch.setitem(onnx_call.OPERATORS, operator, write)
    with pytest.raises(InputError, match=r"differs from the artifact at 6/\S+ by \d\S+ of"):
        save(Export(artifacts[8, 2]), "onnx", tmp_path / "n.onnx")
    assert not list(tmp_path.iterdir())


def test_bad_input_is_one_line(
    artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = Export(artifacts[4, 6], opset=17)
    with pytest.raises(InputError, match="--opset 17: give 25"):
        save(export, "onnx", tmp_path / "n")
    with pytest.raises(InputError, match="format 'tflite' is not known: give one of onnx, pt2"):
        save(export, "tflite", tmp_path / "n")
    with pytest.raises(InputError, match="does not exist: make it first"):
        save(export, "safetensors", tmp_path / "none" / "n")
    with pytest.raises(InputError, match="cannot be written"):
        save(export, "safetensors", tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(Unavailable, match=r"onnx needs .* pip install 'modcap\[export\]'"):
        require(["onnx"])


def test_every_format_has_a_suffix_of_its_own() -> None:
    assert len({exporter.suffix for exporter in EXPORTERS.values()}) == len(EXPORTERS)
