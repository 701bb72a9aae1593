"""The tensors of a ``.pt2`` archive: raw bytes, and how a tensor lies in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from modcap.checkpoints.archive_schema import Payload, Payloads, TensorMeta

__all__ = ["DTYPES", "shape_of", "tensors_of"]

DTYPES = {  # torch._export.serde.schema.ScalarType
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    10: torch.complex64,
    12: torch.bool,
    13: torch.bfloat16,
}


def tensors_of(payloads: Payloads, read: Callable[[str], bytes]) -> dict[str, Tensor]:
    """The tensors of a configuration; those of one file share their memory.

    Args:
        payloads: name to place.
        read: the bytes of a file in the archive.

    Raises:
        ValueError: a tensor does not lie within its file.
    """
    files: dict[tuple[str, torch.dtype], Tensor] = {}
    found: dict[str, Tensor] = {}
    for name, payload in payloads.config.items():
        place = payload.path_name, DTYPES[payload.tensor_meta.dtype]
        if place not in files:
            files[place] = _flat(read(payload.path_name), place[1])
        found[name] = _tensor(payload, files[place], name)
    return found


def shape_of(meta: TensorMeta) -> tuple[int, ...]:
    """Its sizes; raises ValueError where one is not a number."""
    return tuple(_numbers(meta.sizes))


def _numbers(sizes: Sequence[object]) -> list[int]:
    numbers = [size.as_int for size in sizes if size.model_fields_set == {"as_int"}]  # type: ignore[attr-defined]
    if len(numbers) != len(sizes):
        raise ValueError("a stored tensor of symbolic size")
    return numbers


def _flat(data: bytes, dtype: torch.dtype) -> Tensor:
    if not data:
        return torch.empty(0, dtype=dtype)
    if len(data) % dtype.itemsize:
        raise ValueError(f"a file of {len(data)} bytes for {dtype}")
    return torch.frombuffer(bytearray(data), dtype=dtype)


def _tensor(payload: Payload, flat: Tensor, name: str) -> Tensor:
    meta = payload.tensor_meta
    sizes, strides = _numbers(meta.sizes), _numbers(meta.strides)
    (offset,) = _numbers([meta.storage_offset])
    count = math.prod(sizes)
    last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    if count and (count > len(flat) or last >= len(flat)):
        raise ValueError(f"tensor '{name}' does not lie within its file")
    if meta.device.type != "cpu" or meta.layout != 7:
        raise ValueError(f"tensor '{name}' is not a dense one on the CPU")
    found = flat.as_strided(sizes, strides, offset) if count else flat.new_empty(sizes)
    if not payload.is_param:
        return found
    trained = meta.requires_grad and found.is_floating_point()
    return nn.Parameter(found, requires_grad=trained)
