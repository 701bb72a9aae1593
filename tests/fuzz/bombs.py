"""Small files that say, or inflate to, more than they should: of images and of arrays."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from tests.fuzz import mutations

__all__ = ["arrays", "chunk", "png"]

_SIDES = (0, 1, 20, 60_000, 2**24, 2**31 - 1, 2**31)
_DEPTHS, _COLOURS = (1, 2, 8, 16, 33), (0, 2, 3, 4, 6, 9)
_ZEROS = (0, 1, 2**16, 2**27)
_TEXTS = ((b"zTXt", b"x\0\0"), (b"iCCP", b"x\0\0"), (b"iTXt", b"x\0\1\0\0\0"), (b"IDAT", b""))
_LENGTHS = (0, 1, 3, 40, 10**5, 2**31, 2**40, 2**62)
_TYPES = ("|u1", "<f4", "<f8", "<f2", ">i8", "|b1", "|S9", "<U9", "<c8", "|V9", "|O", "<M8[s]")


def chunk(name: bytes, content: bytes) -> bytes:
    """A part of a PNG, with its length and its sum."""
    length = struct.pack(">I", len(content))
    return length + name + content + struct.pack(">I", zlib.crc32(name + content))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 8
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        place += length + 12


def png(data: bytes, rng: random.Random) -> bytes:
    """A PNG whose sums are right, and that says, or holds, more pixels or text than it should."""
    if rng.random() < 0.5:
        return mutations.noise(data, rng)
    (_, header), *others = _chunks(data)
    if rng.random() < 0.8:
        header = struct.pack(">II", rng.choice(_SIDES), rng.choice(_SIDES)) + header[8:]
    if rng.random() < 0.3:
        kind = (rng.choice(_DEPTHS), rng.choice(_COLOURS), 0, 0, rng.randrange(2))
        header = header[:8] + bytes(kind)
    if rng.random() < 0.5:
        name, start = rng.choice(_TEXTS)
        others.insert(0, (name, start + zlib.compress(bytes(rng.choice(_ZEROS)), 1)))
    return data[:8] + b"".join(chunk(*each) for each in [(b"IHDR", header), *others])


def arrays(data: bytes, rng: random.Random) -> bytes:
    """An .npz whose arrays are of other shapes or types, and hold what they say, or do not."""
    if rng.random() < 0.5:
        return mutations.archive(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        members = {name: old.read(name) for name in old.namelist()}
    for name in rng.choice((["images.npy"], ["labels.npy"], list(members))):
        members[name] = _array(rng)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for name, content in members.items():
            new.writestr(name, content)
    return out.getvalue()


def _array(rng: random.Random) -> bytes:
    shape = tuple(rng.choice(_LENGTHS) for _ in range(rng.choice((0, 1, 2, 4, 4, 40))))
    header = {"descr": rng.choice(_TYPES), "fortran_order": rng.random() < 0.2, "shape": shape}
    out = io.BytesIO()
    np.lib.format.write_array_header_2_0(out, header)
    whole = np.dtype(header["descr"]).itemsize * int(np.prod(shape, dtype=object))
    size = whole if whole <= 2**27 and rng.random() < 0.7 else rng.choice(_ZEROS)
    return out.getvalue() + bytes(size)
