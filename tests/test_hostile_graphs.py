"""Artifacts and stored networks that were made to do harm: nothing runs, one line says what."""

from __future__ import annotations

import copy
import json
import random
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from modcap.core.errors import InputError
from modcap.export.artifact import unpack_network
from modcap.graph.graph_json import graph_from_json, graph_to_json
from modcap.graph.network import Network
from tests.hostile import (
    DATA,
    artifact_with,
    header_of_artifact,
    mutated,
    network_with,
    only_input_errors,
)

Change = Callable[[dict[str, Any]], Any]


@torch.no_grad()
def test_what_was_written_before_is_read() -> None:
    kept = load((DATA / "format1.logits.safetensors").read_bytes())
    network = unpack_network((DATA / "format1.artifact.safetensors").read_bytes())
    torch.testing.assert_close(network(kept["images"]), kept["logits"], rtol=1e-4, atol=1e-4)
    data = (DATA / "format1.network.safetensors").read_bytes()
    assert Network.from_bytes(data).to_bytes() == data


def nodes(graph: dict[str, Any], op: str) -> list[dict[str, Any]]:
    return [node for node in graph["nodes"] if node["op"] == op]


def renamed(op: str, text: str, field: str = "target") -> Change:
    def change(graph: dict[str, Any]) -> None:
        nodes(graph, op)[0][field] = text

    return change


def keyword(text: str) -> Change:
    def change(graph: dict[str, Any]) -> None:
        nodes(graph, "call_module")[0]["kwargs"] = {"dict": [[text, 1]]}

    return change


def moved(text: str) -> Change:
    """A layer under another path, and the node that calls it."""

    def change(graph: dict[str, Any]) -> None:
        node = nodes(graph, "call_module")[0]
        graph["modules"][text] = graph["modules"].pop(node["target"])
        node["target"] = text

    return change


def fetched(text: str) -> Change:
    def change(graph: dict[str, Any]) -> None:
        node = {"op": "get_attr", "name": "more", "target": text}
        graph["nodes"].insert(1, {**node, "args": {"tuple": []}, "kwargs": {"dict": []}})

    return change


def attacks(sprung: Path) -> dict[str, Change]:
    run = f"__import__('os').mkdir('{sprung}')"
    quoted = f'"),__import__("os").mkdir("{sprung}"),("'
    return {
        "default": renamed("placeholder", f"x={run}"),
        "annotation": renamed("placeholder", f"x:{run}"),
        "name": renamed("placeholder", f"x={run}", "name"),
        "newline": renamed("placeholder", f"x):\n  {run}\n#"),
        "keyword": keyword(f"a={run},b"),
        "reserved": keyword("lambda"),
        "fetched": fetched(f"a.{quoted}"),
        "fetched call": fetched(f"a[{run}]"),
        "fetched dunder": fetched("__class__"),
        "fetched method": fetched("forward.__func__"),
        "layer": moved(f"a.{quoted}"),
        "layer dunder": moved("a.__init__"),
        "fullwidth": renamed("placeholder", "ｔｏｒｃｈ"),
        "shadow": renamed("placeholder", "torch"),
    }


@pytest.mark.parametrize("kind", ["artifact", "network"])
@pytest.mark.parametrize("name", attacks(Path()))
def test_names_never_become_code(name: str, kind: str, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    change = attacks(sprung)[name]
    header = header_of_artifact()
    change(header["graphs"][0])
    network = network_with(lambda h: change(h["graphs"][0]))
    read, data = {
        "artifact": (unpack_network, artifact_with(header)),
        "network": (Network.from_bytes, network),
    }[kind]
    with pytest.raises(InputError, match="is not supported") as caught:
        read(data)
    assert "\n" not in str(caught.value)
    assert not sprung.exists()


def call(target: str, *args: Any, op: str = "call_function") -> dict[str, Any]:
    """A graph that calls ``target`` with its input and ``args``."""
    graph = graph_to_json(torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())))
    graph["nodes"][2] = graph["nodes"][2] | {
        "op": op,
        "target": target,
        "args": {"tuple": [{"node": graph["nodes"][1]["name"]}, *args]},
    }
    graph["modules"] = {k: v for k, v in graph["modules"].items() if v["type"] == "Conv2d"}
    return graph


@pytest.mark.parametrize(
    "target",
    [
        *("aten._convert_indices_from_csr_to_coo.default", "aten.save.default"),
        *("aten._sparse_coo_tensor_unsafe.default", "aten._nested_view_from_buffer.default"),
        *("aten.as_strided.default", "aten.resize.default", "aten.empty_like.default"),
        *("aten._native_batch_norm_legit_no_training.default", "aten.set.source_Tensor"),
        *("aten._scaled_dot_product_flash_attention_for_cpu.default", "torch.as_strided_copy"),
        *("torch.from_file", "torch.frombuffer", "torch.nn.functional.boolean_dispatch"),
    ],
)
def test_operators_without_checks_are_refused(target: str) -> None:
    with pytest.raises(InputError, match=re.escape(target)):
        graph_from_json(call(target))


@pytest.mark.parametrize(
    "target", ["untyped_storage", "resize_", "set_", "as_strided", "data_ptr", "numpy", "tolist"]
)
def test_methods_that_reach_memory_are_refused(target: str) -> None:
    with pytest.raises(InputError, match=target):
        graph_from_json(call(target, op="call_method"))


@pytest.mark.parametrize(
    ("target", "args"),
    [
        ("torch.nn.functional.interpolate", [[2**20, 2**20]]),
        ("aten.repeat.default", [[2**15, 2**15]]),
        ("operator.mul", [[1, 2]]),
        ("operator.mul", ["text"]),
        ("torch.add", [2**40]),
        ("torch.div", [-1, "trunc"]),
        ("operator.add", []),
    ],
)
def test_sizes_and_arguments_are_bounded(target: str, args: list[Any]) -> None:
    with pytest.raises(InputError, match="is not supported"):
        graph_from_json(call(target, *args))


@pytest.mark.parametrize(
    ("target", "args"),
    [
        ("torch.nn.functional.hardsigmoid", []),
        ("torch.nn.functional.logsigmoid", []),
        ("torch.nn.functional.threshold", [0.1, 0.0]),
        ("torch.roll", [1, 2]),
        ("torch.pixel_unshuffle", [2]),
        ("torch.nn.functional.interpolate", [[8, 8]]),
        ("aten.slice.Tensor", [1, 0, 2**63 - 1]),
    ],
)
def test_what_networks_are_made_of_is_read(target: str, args: list[Any]) -> None:
    graph = graph_from_json(call(target, *args))
    assert graph_to_json(graph)["nodes"][2]["target"] == target


@pytest.mark.parametrize("wrapped", [lambda x: [x], lambda x: {"tuple": [x]}, lambda x: 1])
def test_the_input_of_a_layer_is_one_tensor(wrapped: Callable[[Any], Any]) -> None:
    graph = call("torch.relu")
    layer = graph["nodes"][1]
    (given,) = layer["args"]["tuple"]
    layer["args"] = {"tuple": [wrapped(given), given]}
    with pytest.raises(InputError, match="is not supported"):
        graph_from_json(graph)


def test_a_word_in_the_place_of_a_number_formats_nothing() -> None:
    header = header_of_artifact()
    layer = next(m for m in header["graphs"][0]["modules"].values() if m["type"] == "Conv2d")
    pairs = layer["args"]["dict"]
    pairs[[name for name, _ in pairs].index("in_channels")][1] = "%9999999999d"
    with pytest.raises(InputError, match="'in_channels' of Conv2d"):
        unpack_network(artifact_with(header))


def changed(**fields: Any) -> bytes:
    return artifact_with(header_of_artifact() | fields)


@pytest.mark.parametrize(
    "data",
    [
        changed(format=2),
        changed(format="1"),
        changed(bits=[]),
        changed(names=["a"]),
        changed(input_shape=[3, 8]),
        changed(input_shape=[3, 8, 10**9]),
        changed(more=1),
        changed(graphs=[{}]),
        artifact_with([]),
        artifact_with(None),
    ],
)
def test_headers_that_are_not_whole(data: bytes) -> None:
    assert only_input_errors(unpack_network, data)


@pytest.mark.parametrize("width", [0, 1, 9, 2**40, "4", None])
def test_widths_are_those_of_recipes(width: Any) -> None:
    header = header_of_artifact()
    next(bits for bits in header["bits"] if bits)[0][0] = width
    assert only_input_errors(unpack_network, artifact_with(header))


def test_a_header_is_inflated_no_further_than_it_may_be() -> None:
    bomb = zlib.compress(b"[" * 2**26)
    tensors = {"header": torch.frombuffer(bytearray(bomb), dtype=torch.uint8)}
    with pytest.raises(InputError, match="too long"):
        unpack_network(save(tensors))
    deep = json.dumps(header_of_artifact()).replace('"names"', '"more":' + "[" * 3000 + "]" * 3000)
    bad = zlib.compress(deep.encode())
    assert only_input_errors(
        unpack_network, save({"header": torch.frombuffer(bytearray(bad), dtype=torch.uint8)})
    )


@pytest.mark.parametrize("part", ["integers", "scale", "zero_point", "bias"])
@pytest.mark.parametrize("make", [lambda t: t[:0], lambda t: t.repeat(2), lambda t: t.double()])
def test_tensors_are_those_of_the_layers(part: str, make: Callable[..., Any]) -> None:
    tensors = load((DATA / "format1.artifact.safetensors").read_bytes())
    name = f"0.a.{part}"
    assert only_input_errors(unpack_network, save(tensors | {name: make(tensors[name])}))
    del tensors[name]
    assert only_input_errors(unpack_network, save(tensors))


def test_mutated_artifacts_and_networks_are_read_or_refused() -> None:
    draw = random.Random(20)
    header = header_of_artifact()
    refused = sum(
        only_input_errors(unpack_network, artifact_with(mutated(header, draw))) for _ in range(300)
    )
    again = sum(
        only_input_errors(Network.from_bytes, network_with(lambda h: mutated(h, draw)))
        for _ in range(300)
    )
    assert refused > 200
    assert again > 200


def test_mutated_bytes_are_read_or_refused() -> None:
    draw = random.Random(21)
    for name, read in (("artifact", unpack_network), ("network", Network.from_bytes)):
        data = (DATA / f"format1.{name}.safetensors").read_bytes()
        for _ in range(150):
            bad = bytearray(copy.copy(data))
            for _ in range(draw.randint(1, 4)):
                bad[draw.randrange(len(bad))] = draw.randrange(256)
            only_input_errors(read, bytes(bad[: draw.choice([len(bad), draw.randrange(len(bad))])]))
