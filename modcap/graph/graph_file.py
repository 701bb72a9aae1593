"""What artifacts and stored networks have in common: a header in JSON, and tensors by module."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from modcap.core.errors import InputError
from modcap.core.messages import first_line, wrong_field
from modcap.graph.outputs import Output

__all__ = ["GraphFile", "inflate", "parse_header", "read_tensors", "split"]

_HEADER = 32 * 2**20  # bytes of JSON
_MODULES = 10_000
_Side = Annotated[int, Field(ge=1, le=2**16)]
_Header = TypeVar("_Header", bound="GraphFile")


class GraphFile(BaseModel):
    """The fields that both headers have."""

    model_config = ConfigDict(extra="forbid", strict=True)

    graphs: list[dict[str, Any]] = Field(min_length=1, max_length=_MODULES)
    input_shape: tuple[_Side, _Side, _Side]
    names: list[Annotated[str, Field(max_length=1000)]]
    outputs: tuple[Output, ...] = Field((), max_length=1000)


def inflate(data: bytes) -> bytes:
    """What zlib compressed, if it is no longer than a header may be."""
    inflater = zlib.decompressobj()
    found = inflater.decompress(data, _HEADER)
    if not inflater.eof or inflater.unused_data:
        raise InputError("a header that is cut off, or too long")
    return found


def parse_header(kind: type[_Header], data: bytes | str) -> _Header:
    """The header that ``data`` holds as JSON.

    Raises:
        InputError: a field is missing, unknown or wrong.
    """
    if len(data) > _HEADER:
        raise InputError("a header that is too long")
    try:
        header = kind.model_validate_json(data)
    except ValidationError as error:
        raise InputError(f"its header is wrong: {first_line(wrong_field(error))}") from None
    if not len(header.names) == len(set(header.names)) == len(header.graphs):
        raise InputError("its header is wrong: one name for each module")
    return header


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """The tensors of safetensors bytes; raises InputError where they are damaged."""
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise InputError(first_line(error)) from None


def split(tensors: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """The tensors of each of ``count`` modules, by their names within it.

    Raises:
        InputError: one belongs to none of them.
    """
    found: list[dict[str, Tensor]] = [{} for _ in range(count)]
    places = {str(index): own for index, own in enumerate(found)}
    for name, tensor in tensors.items():
        index, _, own = name.partition(".")
        if index not in places:
            raise InputError(f"tensor '{name[:80]}' belongs to no module: the file is damaged")
        places[index][own] = tensor
    return found
