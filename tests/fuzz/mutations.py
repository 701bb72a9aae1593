"""Changes of good files: of bytes, of JSON values, of members of a zip, of tensors' headers."""

from __future__ import annotations

import copy
import io
import json
import random
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

__all__ = ["archive", "artifact", "changed", "document", "network", "noise", "tensors"]

_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 7, 2**31, 2**63, -(2**63), 10**30, 0.5, -1.5, 1e308, float("nan")),
    *("", "x", "0", "self", "a.b", "x=__import__('os')", "\x1b[2J\n", "\ud800", "é" * 300),
    *(
        [],
        {},
        [[]],
        [None],
        {"": 0},
        [1] * 300,
        "2024-13-45",
        "1e400",
        "aten.save",
        "s0",
        "9**9**9",
    ),
)
_TOKENS = ("&a [*a]", "!!python/name:os.system", "[" * 400, "\t", ": :", "<<: {}", "- ", "{", "? ")


def noise(data: bytes, rng: random.Random) -> bytes:
    """``data`` with a few bytes flipped, cut out, doubled, set, or its end cut off."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        start = rng.randrange(len(found) + 1)
        stop = min(len(found), start + rng.choice((1, 2, 8, 64)))
        kind = rng.randrange(6)
        if kind == 0 and start < len(found):
            found[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del found[start:stop]
        elif kind == 2:
            found[start:start] = found[start:stop]
        elif kind == 3:
            found[start:stop] = bytes([rng.choice((0, 1, 127, 128, 255))]) * (stop - start)
        elif kind == 4:
            found[start:stop] = rng.randbytes(stop - start)
        else:
            del found[start:]
    return bytes(found)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside ``value``."""
    found, left = [], [value]
    while left:
        container = left.pop()
        if isinstance(container, dict | list):
            keys = list(container) if isinstance(container, dict) else range(len(container))
            found += [(container, key) for key in keys]
            left += [container[key] for key in keys]
    return found


def _value(rng: random.Random) -> Any:
    """One of the values; a copy, since it may be changed in its turn."""
    return copy.deepcopy(rng.choice(_VALUES))


def changed(value: Any, rng: random.Random) -> Any:
    """A copy of ``value`` in which one to three places differ."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = _places(value)
        if not places:
            return _value(rng)
        container, key = rng.choice(places)
        other, there = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
        elif kind == 1:
            container[rng.choice(("x", "", "names", f"{key}é"))] = container.pop(key)
        elif kind == 2:
            container[key] = copy.deepcopy(other[there])
        elif kind == 3:
            container[key] = {str(key): container[key]} if rng.random() < 0.5 else [container[key]]
        else:
            container[key] = _value(rng)
    return value


def _deep(text: str, rng: random.Random) -> str:
    """Now and then, JSON text with brackets nested by the thousand."""
    if rng.random() < 0.02:
        return text.replace("1", "[" * 5000 + "]" * 5000, 1)
    return text


def document(text: bytes, rng: random.Random) -> bytes:
    """A recipe, policy, manifest, … as JSON (which is YAML), otherwise filled or spelled."""
    if rng.random() < 0.2:
        return noise(text, rng)
    changed_text = _deep(json.dumps(changed(json.loads(text), rng)), rng)
    if rng.random() < 0.3:
        place = rng.randrange(len(changed_text) + 1)
        changed_text = changed_text[:place] + rng.choice(_TOKENS) + changed_text[place:]
    return changed_text.encode()


def _with_header(data: bytes, change: Callable[[Any], Any]) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def tensors(data: bytes, rng: random.Random) -> bytes:
    """A file of safetensors."""
    if rng.random() < 0.3:
        return noise(data, rng)
    return _with_header(data, lambda header: changed(header, rng))


def network(data: bytes, rng: random.Random) -> bytes:
    """A network as jobs read it: its graphs are JSON text in the header's metadata."""

    def change(header: Any) -> Any:
        metadata = header["__metadata__"]
        text = json.dumps(changed(json.loads(metadata["network"]), rng))
        return {**header, "__metadata__": {**metadata, "network": _deep(text, rng)}}

    return tensors(data, rng) if rng.random() < 0.3 else _with_header(data, change)


def artifact(data: bytes, rng: random.Random) -> bytes:
    """A packed artifact: its header is compressed JSON, kept as a tensor."""
    import torch
    from safetensors.torch import load, save

    if rng.random() < 0.3:
        return tensors(data, rng)
    found = load(data)
    header = json.loads(zlib.decompress(found["header"].numpy().tobytes()))
    text = _deep(json.dumps(changed(header, rng)), rng).encode()
    if rng.random() < 0.02:
        text = b" " * 2**28 + text  # a bomb
    packed = bytearray(zlib.compress(text))
    return bytes(save({**found, "header": torch.frombuffer(packed, dtype=torch.uint8)}))


def archive(data: bytes, rng: random.Random) -> bytes:
    """A zip with one member changed, dropped, renamed, doubled or compressed."""
    if rng.random() < 0.2:
        return noise(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        members = [(name, old.read(name)) for name in old.namelist()]
    index = rng.randrange(len(members))
    name, content = members[index]
    kind = rng.randrange(8)
    if kind == 0:
        del members[index]
    elif kind == 1:
        members[index] = (rng.choice(("x", "../x", "/x", name + "é")), content)
    elif kind == 2:
        members.append((name, rng.choice(members)[1]))
    elif kind == 3:
        members[index] = (name, content + bytes(rng.choice((1, 2**10, 2**24))))
    else:
        members[index] = (name, _member(name, content, rng))
    return _zipped(members, rng)


def _member(name: str, content: bytes, rng: random.Random) -> bytes:
    if name.endswith(".json") and rng.random() < 0.8:
        return _deep(json.dumps(changed(json.loads(content), rng)), rng).encode()
    return noise(content, rng)


def _zipped(members: list[tuple[str, bytes]], rng: random.Random) -> bytes:
    out = io.BytesIO()
    packed = zipfile.ZIP_DEFLATED if rng.random() < 0.2 else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", packed) as new:
        warnings.simplefilter("ignore")  # of names that stand there twice
        for name, content in members:
            new.writestr(name, content)
    return out.getvalue()
