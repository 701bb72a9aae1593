"""The result of a job: a few tensors and a JSON document, as bytes that verify themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from modcap.core.canonical import canonical, digest
from modcap.core.errors import InputError, ModcapError

__all__ = [
    "DamagedResult",
    "Result",
    "canonical",
    "decode",
    "digest",
    "encode",
    "encode_tensors",
    "expect",
    "header_of",
    "metadata_of",
]


class DamagedResult(ModcapError):
    """Stored bytes that are not what was written."""


@dataclass(frozen=True)
class Result:
    """What a job returns.

    ``tensors`` are small (packed weights, scales, zero points, loss curves); ``meta`` is any JSON
    value: metrics, names, seconds.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)


def expect(data: bytes, sha256: str, what: str) -> bytes:
    """``data``, where it is what was made; to be asked before anything of it is read.

    Raises:
        InputError: it is something else.
    """
    found = digest(data)
    if found != sha256:
        raise InputError(
            f"{what} is not what was made: its sha256 is {found[:12]}… where {sha256[:12]}… was "
            "recorded; it was replaced or damaged: restore it, or quantize its checkpoint again"
        )
    return data


def encode_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """safetensors with sorted names: equal tensors give equal bytes."""
    return save({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})


def encode(result: Result) -> tuple[bytes, bytes]:
    """(JSON with the checksums of both parts, safetensors)."""
    tensors = encode_tensors(result.tensors)
    body = {"meta": result.meta, "tensors_sha256": digest(tensors)}
    return canonical({**body, "sha256": digest(canonical(body))}), tensors


def decode(document: bytes, tensors: bytes) -> Result:
    """The inverse of :func:`encode`.

    Raises:
        DamagedResult: a checksum does not match, or the bytes do not parse.
    """
    try:
        body = json.loads(document)
        stated = body.pop("sha256")
        whole = stated == digest(canonical(body))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedResult(f"the JSON part does not parse: {error}") from error
    if not whole:
        raise DamagedResult("the JSON part does not match its checksum")
    if body.get("tensors_sha256") != digest(tensors):
        raise DamagedResult("the tensors do not match their checksum")
    if not isinstance(body.get("meta"), dict):
        raise DamagedResult("the JSON part holds no meta")
    try:
        return Result(load(tensors), body["meta"])
    except (SafetensorError, ValueError) as error:
        raise DamagedResult(f"the tensors do not parse: {error}") from error


def header_of(data: bytes, name: str) -> Any:
    """The JSON value under ``name`` in the metadata of safetensors bytes."""
    return json.loads(metadata_of(data, name))


def metadata_of(data: bytes, name: str) -> str:
    """The string under ``name`` in the metadata of safetensors bytes."""
    length = int.from_bytes(data[:8], "little")
    found: str = json.loads(data[8 : 8 + length])["__metadata__"][name]
    return found
