"""docs/format.md is enough to read an artifact: a reader of 30 lines that knows numpy alone."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

import modcap
from modcap.core.errors import InputError
from modcap.quantization.insert import quantizers
from tests.exports import artifact_of
from tests.test_export import SHAPE, network

TYPES = {"U8": np.uint8, "F32": np.float32, "I64": np.int64}


def read(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """The header, and every tensor; weights as the real values that their integers stand for."""
    (length,) = struct.unpack("<Q", data[:8])
    entries, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    tensors = {}
    for name, entry in entries.items():
        start, stop = entry["data_offsets"]
        values = np.frombuffer(body[start:stop], TYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    header = json.loads(zlib.decompress(tensors.pop("header").tobytes()))
    for index, (graph, widths) in enumerate(zip(header["graphs"], header["bits"], strict=True)):
        called = [n["target"] for n in graph["nodes"] if n["op"] == "call_module"]
        layers = [t for t in called if f"{index}.{t}.integers" in tensors]
        for layer, (bits, _) in zip(layers, widths, strict=True):
            name, kind = f"{index}.{layer}", graph["modules"][layer]
            scale, zero = tensors[f"{name}.scale"], tensors[f"{name}.zero_point"]
            shape, axis = shape_of(kind["type"], dict(kind["args"]["dict"]))
            stream = tensors[f"{name}.integers"]
            digits = np.unpackbits(stream, count=bits * int(np.prod(shape)), bitorder="little")
            integers = (digits.reshape(-1, bits) @ (1 << np.arange(bits))).reshape(shape)
            spread = [-1 if d == axis else 1 for d in range(len(shape))]
            tensors[f"{name}.weight"] = (integers - zero.reshape(spread).astype(int)).astype(
                np.float32
            ) * scale.reshape(spread)
    return header, tensors


def shape_of(kind: str, a: dict[str, Any]) -> tuple[tuple[int, ...], int]:
    """Of a layer's weight, and the axis of its output channels."""
    if kind == "Linear":
        return (a["out_features"], a["in_features"]), 0
    kernel, first, second = a["kernel_size"]["tuple"], a["in_channels"], a["out_channels"]
    if "Transpose" in kind:
        return (first, second // a["groups"], *kernel), 1
    return (second, first // a["groups"], *kernel), 0


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_an_independent_reader_finds_the_same_weights(tmp_path: Path, bits: int) -> None:
    artifact = artifact_of(network(), torch.randn(4, *SHAPE), bits, 4)
    (tmp_path / "n.safetensors").write_bytes(artifact)
    header, tensors = read(artifact)
    loaded = modcap.load(tmp_path / "n.safetensors")
    assert header["names"] == list(loaded.names)
    assert tuple(header["input_shape"]) == SHAPE
    count = 0
    for index, module in enumerate(loaded.modules_in_order):
        layers, values = quantizers(module)
        for name, layer in layers.items():
            found = tensors[f"{index}.{name}.weight"]
            assert np.array_equal(found, layer.weight.numpy())
            count += 1
        for name, value in values.items():
            assert tensors[f"{index}.{name}.scale"] == value.scale.numpy()
            assert tensors[f"{index}.{name}.zero_point"] == value.zero_point.numpy()
    assert count == 5


def with_header(artifact: bytes, **fields: Any) -> bytes:
    """The same artifact, whose header says these, too."""
    tensors = load(artifact)
    header = json.loads(zlib.decompress(tensors["header"].numpy().tobytes()))
    packed = zlib.compress(json.dumps(header | fields).encode())
    return save(tensors | {"header": torch.frombuffer(bytearray(packed), dtype=torch.uint8)})


def test_preprocessing_and_class_names_are_there_where_they_are_known(tmp_path: Path) -> None:
    file, artifact = (
        tmp_path / "n.safetensors",
        artifact_of(network(), torch.randn(4, *SHAPE), 8, 8),
    )
    assert not {"preprocess", "classes"} & read(artifact)[0].keys()
    file.write_bytes(artifact)
    assert (modcap.load(file).preprocess, modcap.load(file).classes) == ("", ())
    file.write_bytes(with_header(artifact, preprocess="mean=0,std=1", classes=["a", "ü"]))
    assert modcap.load(file).preprocess == "mean=0,std=1"
    assert modcap.load(file).classes == ("a", "ü")


@pytest.mark.parametrize(
    "fields",
    [{"preprocess": 3}, {"classes": "abc"}, {"classes": [1]}, {"preprocess": "x" * 10_001}],
)
def test_what_says_no_such_thing_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    artifact = artifact_of(network(), torch.randn(4, *SHAPE), 8, 8)
    (tmp_path / "n").write_bytes(with_header(artifact, **fields))
    with pytest.raises(InputError, match=r"damaged one .*its header is wrong"):
        modcap.load(tmp_path / "n")
