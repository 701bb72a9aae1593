"""Reads a ``.pt2`` archive of ``torch.export`` without executing anything that it contains.

``torch.export.load`` unpickles weights, constants and sample inputs, loads compiled libraries,
evaluates symbolic sizes with ``sympy.sympify``, resolves any ``torch.…`` name as an operator and
compiles the guards (sources: torch/export/pt2_archive/_package.py, torch/_export/serde). So an
archive is inspected first, through the very reader that loads it: known entries only, tensors as
raw bytes, a graph of ATen operators, sizes of plain arithmetic. Anything else is refused.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader
from torch.export.pt2_archive._package import load_pt2

from modcap.core.errors import InputError
from modcap.core.messages import first_line

__all__ = ["read"]

_GRAPH = "models/model.json"
_CONFIGS = (
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)
_INPUTS = "data/sample_inputs/model.pt"
_ENTRY = re.compile(
    r"archive_format|archive_version|version|byteorder|\.data/[\w.]+|\.format_version"
    r"|\.storage_alignment|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
)
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!from_file\b)(?!__)\w+\.\w+"
    r"|torch\.sym_\w+|torch\._check"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|lt|le|gt|ge|eq|ne|and_|or_)"
    r"|math\.(ceil|floor|trunc|sqrt)"
)
_EXPRESSION = re.compile(
    r"(?:'[a-z]+\d+'|[\d.\s(),=+*/<>-]|\b(?:[a-z]+\d+|Symbol|Integer|Rational|Add|Mul|Pow|Max|Min"
    r"|FloorDiv|CeilDiv|CleanDiv|Mod|PythonMod|ModularIndexing|IntTrueDiv|FloatTrueDiv|PowByNatural"
    r"|CeilToInt|FloorToInt|TruncToInt|TruncToFloat|ToFloat|Equality|Unequality|GreaterThan"
    r"|LessThan|StrictGreaterThan|StrictLessThan|positive|nonnegative|integer|real|True|False"
    r"|true|false)\b)*"
)
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")


class _Refused(Exception):
    """The archive holds something that loading could execute; the message names it."""


def read(data: bytes, where: str) -> tuple[ExportedProgram, str]:
    """Reads an archive written by ``torch.export.save``.

    Args:
        data: the archive.
        where: what to call it in errors.

    Returns:
        The program, without guards, and the sha256 of its graph.

    Raises:
        InputError: the archive is damaged, of another version, or could execute code.
    """
    try:
        graph = _inspect(PT2ArchiveReader(io.BytesIO(data)))
        program = load_pt2(io.BytesIO(data)).exported_programs["model"]
    except _Refused as refusal:
        raise InputError(
            f"{where} holds {refusal}, which modcap does not load since it could execute code: "
            f"export the network again with torch.export.save"
        ) from None
    except Exception as error:  # torch raises anything on a damaged archive
        raise InputError(
            f"{where} cannot be read as a .pt2 archive by torch {torch.__version__} "
            f"({first_line(error)}): it is damaged or of another version, export it again"
        ) from error
    program._guards_code = []  # compiled as Python by ExportedProgram.module
    for node in graph["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}  # differs with the folder that torch is installed in
    return program, sha256(json.dumps(graph, sort_keys=True).encode()).hexdigest()


def _inspect(reader: PT2ArchiveReader) -> dict[str, Any]:
    """The graph of an archive that is safe to load; raises :class:`_Refused` for any other."""
    for name in reader.get_file_names():
        if not (_ENTRY.fullmatch(name) or name.startswith("extra/")):
            raise _Refused(f"an entry {name}")
    for config in _CONFIGS:
        for name, payload in json.loads(reader.read_string(config))["config"].items():
            if payload.get("use_pickle"):
                raise _Refused(f"a pickled tensor {name}")
    _check_inputs(reader.read_bytes(_INPUTS))
    graph: dict[str, Any] = json.loads(reader.read_string(_GRAPH))
    for key, value in _strings(graph):
        _check_string(key, value)
    return graph


def _check_inputs(data: bytes) -> None:
    try:
        if data:
            torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        raise _Refused("sample inputs that are not plain tensors") from error


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string below ``value`` with the key it stands under, and the names of symbols."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, child in value.items():
            if key == "range_constraints":
                yield "expr_str", name
            yield from _strings(child, name)
    elif isinstance(value, list):
        for child in value:
            yield from _strings(child, key)


def _check_string(key: str, value: str) -> None:
    if key in ("target", "as_operator") and not _OPERATOR.fullmatch(value):
        raise _Refused(f"the operator {value}")
    if key == "expr_str" and not _EXPRESSION.fullmatch(value):
        raise _Refused(f"the expression {value[:60]!r}")
    if key in ("in_spec", "out_spec"):
        _check_tree(json.loads(value)[1])


def _check_tree(node: dict[str, Any]) -> None:
    if node["type"] not in _CONTAINERS or "__enum__" in (node["context"] or ""):
        raise _Refused(f"an argument of type {node['type']}")
    for child in node["children_spec"]:
        _check_tree(child)
