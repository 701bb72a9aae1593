"""Objects at s3:// addresses, and local copies of what lies in S3.

With boto3 alone: the store needs its conditional writes, which fsspec does not have.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import gettempdir
from typing import IO, Any

from botocore.exceptions import BotoCoreError, ClientError

from modcap.core.errors import InputError, Lost, Unavailable
from modcap.tasks.storage.s3 import (
    GONE,
    client,
    code_of,
    endpoint_of_environment,
    listed,
    lost,
    patiently,
)

__all__ = [
    "Found",
    "Missing",
    "cache_folder",
    "digest_of",
    "download",
    "fetch",
    "find",
    "split_address",
    "write_whole",
]

_SCHEME = "s3://"
_CACHED = timedelta(days=7)
_MOST = 32 * 2**30  # bytes of local copies of a kind
_IN_USE = timedelta(minutes=10)  # so long, somebody may still read, or write, a copy
_LONGEST_NAME = 100  # characters of a key that the name of its copy keeps
_CHUNK = 1 << 20


class Missing(Unavailable):
    """There is no such object, though S3 answers."""


def cache_folder(kind: str) -> Path:
    """A folder of this user alone for local copies of ``kind``; those older than a week, and the
    oldest of more than 32 GiB, are removed.

    Raises:
        Unavailable: somebody else made it.
    """
    root = Path(gettempdir()) / f"modcap-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise Unavailable(f"{root} belongs to somebody else: remove it, or set TMPDIR")
    _trim(root / kind)
    return root / kind


def _trim(folder: Path) -> None:
    """Removes what is old, or too much; also what processes left that ended while they wrote."""
    now, total = time.time(), 0
    for age, size, file in sorted((now - s.st_mtime, s.st_size, f) for f, s in _files(folder)):
        total += size
        if age > _CACHED.total_seconds() or (total > _MOST and age > _IN_USE.total_seconds()):
            file.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for file in folder.glob("**/*"):
        with contextlib.suppress(FileNotFoundError):  # another process does the same
            if file.is_file():
                yield file, file.stat()


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[IO[bytes]]:
    """A new file in the folder of ``path``, which goes unless it was moved there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            yield file
        finally:
            Path(file.name).unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is there whole or not at all."""
    with _beside(path) as file:
        file.write(data)
        file.flush()
        Path(file.name).replace(path)


def download(body: Any, path: Path, expected: str | None = None) -> str:
    """Writes what an answer of S3 holds to a file, as it comes, and returns its sha256; where that
    is not the expected one, there is no file."""
    found = hashlib.sha256()
    with contextlib.closing(body), _beside(path) as file:
        for chunk in body.iter_chunks(_CHUNK):
            found.update(chunk)
            file.write(chunk)
        file.flush()
        if expected in (None, found.hexdigest()):
            Path(file.name).replace(path)
    return found.hexdigest()


def digest_of(path: Path) -> str:
    """The sha256 of a file, of any size."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


@dataclass(frozen=True)
class Found:
    """An object at an s3:// address: its version (ETag), size and time of its last change."""

    address: str
    version: str
    bytes: int
    modified: datetime


def split_address(address: str) -> tuple[str, str]:
    """The bucket and the key, or prefix, of an s3:// address; a key may hold ``?`` and ``#``.

    Raises:
        InputError: it is none.
    """
    bucket, _, key = address.removeprefix(_SCHEME).partition("/")
    if not address.startswith(_SCHEME) or not bucket:
        raise InputError(f"{address!r} is no S3 address: give s3://bucket/prefix")
    return bucket, key


def _environment_client() -> Any:
    return client(endpoint_of_environment())


def find(address: str) -> list[Found]:
    """The object at an s3:// address, and all below it, by name; ``s3://b/a`` has no ``ab/c``.

    Raises:
        InputError: it is no S3 address.
        Unavailable: the bucket does not exist or cannot be read.
    """
    bucket, prefix = split_address(address)
    try:
        return [
            Found(f"s3://{bucket}/{o['Key']}", o["ETag"].strip('"'), o["Size"], o["LastModified"])
            for o in _listed(bucket, prefix)
        ]
    except (BotoCoreError, ClientError) as error:
        raise _unreadable(address, error) from None


def _listed(bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    s3 = _environment_client()
    if prefix and not prefix.endswith("/"):
        first = patiently(s3.list_objects_v2)(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        yield from (o for o in first.get("Contents", []) if o["Key"] == prefix)  # it comes first
        prefix += "/"
    yield from listed(s3, bucket, prefix)


def _unreadable(address: str, error: Exception) -> Unavailable:
    gone = isinstance(error, ClientError) and code_of(error) in GONE
    endpoint = endpoint_of_environment()
    reason, server = str(error).splitlines()[0], endpoint or "AWS"
    kind = Missing if gone else Lost if lost(error, endpoint) else Unavailable
    return kind(f"{address}: cannot be read from {server} ({reason}): check address and rights")


def fetch(address: str, folder: Path) -> Path:
    """A local copy of the object at an s3:// address, named after its content's version. One that
    was fetched before is compared with the checksum that it had then.

    Raises:
        InputError: it is no S3 address.
        Unavailable: it does not exist or cannot be read.
    """
    bucket, key = split_address(address)
    try:
        return _fetch(address, bucket, key, folder)
    except (BotoCoreError, ClientError) as error:
        raise _unreadable(address, error) from None


@patiently
def _fetch(address: str, bucket: str, key: str, folder: Path) -> Path:
    s3 = _environment_client()
    while True:
        tag = s3.head_object(Bucket=bucket, Key=key)["ETag"]
        stamp = hashlib.sha256(f"{address} {tag}".encode()).hexdigest()[:16]
        local = folder / stamp / Path(key).name[-_LONGEST_NAME:]
        checksum = folder / f"{stamp}.sha256"
        if local.exists() and checksum.exists() and checksum.read_text() == digest_of(local):
            return local
        try:
            found = s3.get_object(Bucket=bucket, Key=key, IfMatch=tag)
        except ClientError as error:
            if code_of(error) != "PreconditionFailed":
                raise
            continue  # it was replaced this moment
        write_whole(checksum, download(found["Body"], local).encode())
        return local
