"""Archives of torch.export that were made to do harm: nothing runs, one line says what."""

from __future__ import annotations

import copy
import io
import json
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from modcap.checkpoints import export_archive as pt2
from modcap.checkpoints.archive_sizes import check_expression
from modcap.core.errors import InputError
from tests.hostile import mutated, only_input_errors
from tests.networks import exported

Change = Callable[[dict[str, Any]], Any]
GRAPH, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.n(self.a(x)).reshape(x.size(0), 2, 2, -1).relu_().sum(3) * 2
        logits: torch.Tensor = self.head(y.flatten(1))
        return logits


IMAGES = torch.randn(2, 3, 6, 6)


def saved(program: torch.export.ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def archive() -> bytes:
    return saved(exported(Net().eval(), IMAGES))


def read(data: bytes) -> Any:
    return pt2.read(data, "m.pt2")


def document(data: bytes, end: str = GRAPH) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        return json.loads(opened.read(next(n for n in opened.namelist() if n.endswith(end))))


def with_document(data: bytes, changed: Any, end: str = GRAPH, method: int = 0) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
        for entry in old.infolist():
            found = old.read(entry)
            if entry.filename.endswith(end):
                found = json.dumps(changed).encode()
            new.writestr(entry.filename, found, method)
    return out.getvalue()


def replaced(value: Any, old: str, new: str) -> Any:
    """``value`` with every string ``old`` in it, keys among them, put as ``new``."""
    if isinstance(value, dict):
        return {new if k == old else k: replaced(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [replaced(item, old, new) for item in value]
    return new if value == old else value


def test_what_is_read_computes_what_was_exported(archive: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.namelist()
    program, _ = read(archive)
    expected = torch.export.load(io.BytesIO(archive)).module()
    x = torch.randn(5, 3, 6, 6)
    assert torch.equal(program.module()(x), expected(x))


def name_of(kind: str, graph: dict[str, Any]) -> str:
    """A name of that kind in the archive."""
    module = graph["graph_module"]
    named: dict[str, Callable[[], str]] = {
        "input": lambda: module["graph"]["inputs"][-1]["as_tensor"]["name"],
        "parameter": lambda: module["graph"]["inputs"][0]["as_tensor"]["name"],
        "node": lambda: module["graph"]["nodes"][1]["name"],
        "path": lambda: module["signature"]["input_specs"][0]["parameter"]["parameter_name"],
        "symbol": lambda: next(iter(graph["range_constraints"])),
        "operator": lambda: module["graph"]["nodes"][0]["target"],
        "argument": lambda: module["graph"]["nodes"][0]["inputs"][0]["name"],
        "forward": lambda: module["module_call_graph"][0]["signature"]["forward_arg_names"][0],
    }
    return named[kind]()


@pytest.mark.parametrize(
    "kind", ["input", "parameter", "node", "path", "symbol", "operator", "argument", "forward"]
)
def test_names_never_become_code(archive: bytes, kind: str, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    graph, weights = document(archive), document(archive, WEIGHTS)
    name = name_of(kind, graph)
    call = f"__import__('os').mkdir('{sprung}')"
    for evil in (f"x={call}", f"x:{call}", f'"),{call},("', f"x):\n  {call}\n#", "x.__class__"):
        bad = with_document(archive, replaced(graph, name, evil))
        bad = with_document(bad, replaced(weights, name, evil), WEIGHTS)
        assert only_input_errors(run, bad), evil
    assert not sprung.exists()


def run(data: bytes) -> None:
    program, _ = read(data)
    program.module()(IMAGES)


def node(graph: dict[str, Any], index: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = graph["graph_module"]["graph"]["nodes"][index]
    return found


CHANGES: dict[str, Change] = {
    "subgraph": lambda g: node(g)["inputs"][0].update(
        arg={"as_graph": {"name": "x", "graph": copy.deepcopy(g["graph_module"]["graph"])}}
    ),
    "object": lambda g: node(g)["inputs"][0].update(
        arg={"as_custom_obj": {"name": "x", "class_fqn": "os.system"}}
    ),
    "operator as argument": lambda g: node(g)["inputs"][0].update(
        arg={"as_operator": "torch.os.system"}
    ),
    "unchecked operator": lambda g: node(g).update(
        target="torch.ops.aten._convert_indices_from_csr_to_coo.default"
    ),
    "operator that saves": lambda g: node(g).update(target="torch.ops.aten.save.default"),
    "unknown field": lambda g: node(g).update(more=1),
    "two choices": lambda g: node(g)["outputs"][0].update(as_int=1),
    "power": lambda g: symbolic(g, "Pow(Integer(9), Pow(Integer(9), Integer(9)))"),
    "tower": lambda g: symbolic(g, "9**9**9**9"),
    "verifier": lambda g: g.update(verifiers=["EDGE"]),
    "structure": lambda g: g["graph_module"]["module_call_graph"][0]["signature"].update(
        in_spec='[1, {"type": "collections.OrderedDict", "context": "[]", "children_spec": []}]'
    ),
}


def symbolic(graph: dict[str, Any], text: str) -> None:
    values = graph["graph_module"]["graph"]["tensor_values"]
    next(iter(values.values()))["sizes"][0] = {"as_expr": {"expr_str": text, "hint": None}}


@pytest.mark.parametrize("name", CHANGES)
def test_what_no_network_holds_is_refused(archive: bytes, name: str) -> None:
    graph = document(archive)
    CHANGES[name](graph)
    with pytest.raises(InputError, match="could execute code"):
        read(with_document(archive, graph))


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9",
        "Pow(Integer(9), Integer(99999))",
        "Pow(Pow(Pow(Add(Symbol('s1'), Symbol('s2')), 4), 4), 4)",
        "Mul(" + ", ".join(["Add(Symbol('s1'), Symbol('s2'), Symbol('s3'))"] * 9) + ")",
        "Symbol('x y')",
        "Symbol('s1', commutative=False)",
        "__import__('os')",
        "Symbol.__class__",
        "Integer(9)" + "+1" * 10_000,
        "(" * 900,
        "lambda: 0",
    ],
)
def test_expressions_are_cheap(text: str) -> None:
    with pytest.raises(ValueError, match="expression"):
        check_expression(text)


def test_expressions_that_are_written_are_read() -> None:
    symbol = "Symbol('s77', positive=True, integer=True)"
    for text in (
        symbol,
        f"Mul(Integer(49), {symbol})",
        f"Add(Integer(-1), Mul(Rational(1, 2), {symbol}))",
        f"Min(Integer(768), Mul(Integer(768), {symbol}))",
        f"FloorDiv(Pow({symbol}, Integer(2)), Integer(2))",
    ):
        assert check_expression(text) == text


@pytest.mark.parametrize(
    "fields",
    [
        {"strides": [{"as_int": 0}] * 4, "sizes": [{"as_int": 10**6}] * 4},
        {"strides": [{"as_int": 10**12}] * 4},
        {"storage_offset": {"as_int": 10**12}},
        {"sizes": [{"as_int": 4}]},
        {"dtype": 99},
        {"device": {"type": "meta", "index": None}},
        {"layout": 1},
    ],
)
def test_tensors_lie_within_their_files(archive: bytes, fields: dict[str, Any]) -> None:
    weights = document(archive, WEIGHTS)
    weights["config"]["a.weight"]["tensor_meta"].update(fields)
    assert only_input_errors(read, with_document(archive, weights, WEIGHTS))


def test_entries_are_as_large_as_they_lie_there(archive: bytes) -> None:
    bad = with_document(archive, document(archive), method=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="compressed entries"):
        read(bad)


def test_a_norm_with_too_few_statistics_reads_nothing_beyond_them() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = exported(nn.Sequential(Net()).eval(), IMAGES).run_decompositions()
    data = saved(program)
    read(data)
    graph, weights = document(data), document(data, WEIGHTS)
    one = [{"as_int": 1}]
    for name, payload in weights["config"].items():
        if name in ("0.n.weight", "0.n.bias"):
            payload["tensor_meta"].update(sizes=one)
            graph["graph_module"]["graph"]["tensor_values"][f"p_{name.replace('.', '_')}"].update(
                sizes=one
            )
    bad = with_document(with_document(data, graph), weights, WEIGHTS)
    with pytest.raises(InputError, match="a number for each channel"):
        read(bad)


def test_mutated_archives_are_read_or_refused(archive: bytes) -> None:
    draw = random.Random(22)
    graph, weights = document(archive), document(archive, WEIGHTS)
    refused = sum(
        only_input_errors(read, with_document(archive, mutated(graph, draw))) for _ in range(60)
    )
    assert refused > 20
    for _ in range(60):
        only_input_errors(read, with_document(archive, mutated(weights, draw), WEIGHTS))
    for _ in range(40):
        bad = bytearray(archive)
        bad[draw.randrange(len(bad))] = draw.randrange(256)
        only_input_errors(read, bytes(bad))
