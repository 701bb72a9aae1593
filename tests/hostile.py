"""Documents made wrong, by hand and at random."""

from __future__ import annotations

import copy
import json
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from modcap.core.errors import InputError
from modcap.core.serialization import metadata_of

__all__ = [
    "DATA",
    "artifact_with",
    "header_of_artifact",
    "mutated",
    "network_with",
    "only_input_errors",
]

DATA = Path(__file__).parent / "data"
_ODD: list[Any] = [
    *(None, True, -1, 0, 1.5, 2**70, "", "x", "__class__", "a.b", [], {}, [[]], "9" * 50),
    *({"node": "x"}, {"tuple": []}, {"torch": "load"}, {"device": "meta"}, {"float": "x"}),
    *("import os", "x=1", '");print(1)#', [1] * 9, {"dict": [["a", 1], ["a", 1]]}),
]


def header_of_artifact() -> dict[str, Any]:
    tensors = load((DATA / "format1.artifact.safetensors").read_bytes())
    found: dict[str, Any] = json.loads(zlib.decompress(tensors["header"].numpy().tobytes()))
    return found


def artifact_with(header: Any) -> bytes:
    """The artifact that is kept, with another header."""
    tensors = load((DATA / "format1.artifact.safetensors").read_bytes())
    packed = bytearray(zlib.compress(json.dumps(header).encode()))
    return save(tensors | {"header": torch.frombuffer(packed, dtype=torch.uint8)})


def network_with(change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The network that is kept, with its header changed."""
    data = (DATA / "format1.network.safetensors").read_bytes()
    header = json.loads(metadata_of(data, "network"))
    header = change(header) or header
    return save(load(data), {"network": json.dumps(header)})


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in items:
        yield value, key
        if isinstance(child, dict | list):
            yield from _places(child)


def mutated(document: Any, draw: random.Random) -> Any:
    """A copy with one to three of its values replaced, removed, doubled or renamed."""
    found = copy.deepcopy(document)
    for _ in range(draw.randint(1, 3)):
        holder, key = draw.choice(list(_places(found)))
        kind = draw.randrange(4)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[draw.choice(["x", "node", "op", "target", "as_int"])] = holder.pop(key)
        elif kind == 2 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(draw.choice(holder)))
        else:
            holder[key] = copy.deepcopy(draw.choice(_ODD))
        if not found:
            break
    return found


def only_input_errors(read: Callable[[bytes], Any], data: bytes) -> bool:
    """Whether ``data`` is refused, with one line; anything but that or success is raised."""
    try:
        read(data)
    except InputError as error:
        said = str(error)
    else:
        return False
    assert "\n" not in said
    assert len(said) < 700
    return True
