"""Reads a ``.pt2`` archive of ``torch.export`` without executing anything that it contains.

``torch.export.load`` unpickles weights, constants and sample inputs, loads compiled libraries,
evaluates symbolic sizes with ``sympy.sympify``, resolves any ``torch.…`` name as an operator, makes
Python source of the names in a graph and compiles the guards. So it is not used: an archive is
opened here, its documents are proved field by field (:mod:`~modcap.checkpoints.archive_schema`),
its tensors are
read as raw bytes, and torch's deserializer is given what was proved, written again.
"""

from __future__ import annotations

import io
import json
import pickletools
import re
import zipfile
from hashlib import sha256
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor
from torch._export.serde import schema
from torch._export.serde.serialize import ExportedProgramDeserializer, _dict_to_dataclass
from torch.export import ExportedProgram

from modcap.checkpoints.archive_norms import check_norms
from modcap.checkpoints.archive_schema import Graph, Payloads, Program
from modcap.checkpoints.archive_tensors import DTYPES, shape_of, tensors_of
from modcap.checkpoints.exported_for import TRAINING, trained
from modcap.core.errors import InputError
from modcap.core.messages import first_line, wrong_field

__all__ = ["read"]

_GRAPH = "models/model.json"
_WEIGHTS, _CONSTANTS = "data/weights", "data/constants"
_INPUTS = "data/sample_inputs/model.pt"
_ENTRY = re.compile(
    r"archive_format|archive_version|version|byteorder|\.data/[\w.]+|\.format_version"
    r"|\.storage_alignment|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
)
_PLAIN = ("torch", "torch._utils", "collections")  # modules that pickles of tensors name
_Document = TypeVar("_Document", bound=BaseModel)


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
        files = _opened(data)
        _check_inputs(files[_INPUTS])
        program, weights, constants = _documents(files)
        return _built(program, weights, constants), _digest(files[_GRAPH])
    except _Refused as refusal:
        for operator in TRAINING:
            if operator in str(refusal):
                raise trained(where, operator) from None
        raise InputError(
            f"{where} holds {refusal}, which modcap does not load since it could execute code: "
            f"export the network again with torch.export.save"
        ) from None
    except Exception as error:  # torch raises anything on a damaged archive
        raise InputError(
            f"{where} cannot be read as a .pt2 archive by torch {torch.__version__} "
            f"({first_line(error)}): it is damaged or of another version, export it again"
        ) from error


def _opened(data: bytes) -> dict[str, bytes]:
    """The entries by name; they lie in the archive as they are, so they are no larger than it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if len({entry.filename for entry in entries}) != len(entries):
            raise ValueError("two entries of one name")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("compressed entries")
        if sum(entry.file_size for entry in entries) > len(data):
            raise ValueError("entries within one another")
        files = {}
        for entry in entries:
            name = entry.filename.partition("/")[2]
            if not (_ENTRY.fullmatch(name) or name.startswith("extra/")):
                raise _Refused(f"an entry {name[:80]}")
            files[name] = archive.read(entry)
    if files.get("archive_format") != b"pt2" or files.get("archive_version", b"0") != b"0":
        raise ValueError("no archive of version 0")
    return files


def _check_inputs(data: bytes) -> None:
    """Refuses sample inputs that are no tensors; they are not loaded."""
    if not data:
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entry = next(e for e in archive.infolist() if e.filename.endswith("/data.pkl"))
            if entry.file_size > len(data):
                raise ValueError("a compressed pickle")
            named = pickletools.genops(archive.read(entry))
            plain = all(_is_plain(opcode.name, argument) for opcode, argument, _ in named)
    except Exception as error:
        raise _Refused("sample inputs that are not plain tensors") from error
    if not plain:
        raise _Refused("sample inputs that are not plain tensors")


def _is_plain(opcode: str, argument: Any) -> bool:
    if opcode == "GLOBAL":
        return str(argument).partition(" ")[0] in _PLAIN
    return opcode not in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4")


def _documents(files: dict[str, bytes]) -> tuple[Program, dict[str, Tensor], dict[str, Tensor]]:
    program = _parsed(Program, files[_GRAPH])
    parts = []
    for folder, config in (
        (_WEIGHTS, "model_weights_config.json"),
        (_CONSTANTS, "model_constants_config.json"),
    ):
        payloads = _parsed(Payloads, files[f"{folder}/{config}"])
        parts.append(tensors_of(payloads, lambda name, folder=folder: files[f"{folder}/{name}"]))  # type: ignore[misc]
    _check_stored(program, *parts)
    return program, parts[0], parts[1]


def _parsed(kind: type[_Document], data: bytes) -> _Document:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        told = str(first.get("ctx", {}).get("error", "")) or wrong_field(error)
        raise _Refused(first_line(told)) from None


def _check_stored(
    program: Program, weights: dict[str, Tensor], constants: dict[str, Tensor]
) -> None:
    """Refuses a graph whose inputs are not of the shape and type of the tensors for them."""
    graph = program.graph_module.graph
    stored = weights | constants
    for spec in program.graph_module.signature.input_specs:
        for given, name in (
            (spec.parameter, getattr(spec.parameter, "parameter_name", "")),
            (spec.buffer, getattr(spec.buffer, "buffer_name", "")),
            (spec.tensor_constant, getattr(spec.tensor_constant, "tensor_constant_name", "")),
        ):
            if given is not None:
                _check_tensor(graph, given.arg.name, name, stored[name])


def _check_tensor(graph: Graph, node: str, name: str, tensor: Tensor) -> None:
    meta = graph.tensor_values[node]
    if shape_of(meta) != tuple(tensor.shape) or DTYPES[meta.dtype] != tensor.dtype:
        raise ValueError(f"tensor '{name}' is not of the shape that the graph takes")


def _built(
    program: Program, weights: dict[str, Tensor], constants: dict[str, Tensor]
) -> ExportedProgram:
    document = program.model_dump(exclude_unset=True)
    module = document["graph_module"]
    module["module_call_graph"] = module["module_call_graph"][:1]  # of the network as a whole
    typed = _dict_to_dataclass(schema.ExportedProgram, document)
    found: ExportedProgram = ExportedProgramDeserializer().deserialize(typed, weights, constants)
    check_norms(found)
    found._guards_code = []  # compiled as Python by ExportedProgram.module
    return found


def _digest(document: bytes) -> str:
    graph = json.loads(document)
    for node in graph["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}  # differs with the folder that torch is installed in
    return sha256(json.dumps(graph, sort_keys=True).encode()).hexdigest()
