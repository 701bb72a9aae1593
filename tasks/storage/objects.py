"""Objects at s3:// addresses, and local copies of what lies in S3."""

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
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from modcap.core.errors import InputError, Unavailable
from modcap.tasks.storage.s3 import GONE, client, code_of, endpoint_of_environment, patiently

__all__ = ["Found", "Missing", "cache_folder", "fetch", "find", "split_address", "write_whole"]

_SCHEME = "s3://"
_CACHED = timedelta(days=7)
_LONGEST_NAME = 100  # characters of a key that the name of its copy keeps


class Missing(Unavailable):
    """There is no such object, though S3 answers."""


def cache_folder(kind: str) -> Path:
    """A folder of this user alone for local copies of ``kind``; those older than a week are
    removed.

    Raises:
        Unavailable: somebody else made it.
    """
    root = Path(gettempdir()) / f"modcap-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise Unavailable(f"{root} belongs to somebody else: remove it, or set TMPDIR")
    oldest = time.time() - _CACHED.total_seconds()
    for file in (root / kind).glob("**/*"):
        with contextlib.suppress(FileNotFoundError):  # another process does the same
            if file.is_file() and file.stat().st_mtime < oldest:
                file.unlink()
    return root / kind


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    Path(file.name).replace(path)


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
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        yield from page.get("Contents", [])


def _unreadable(address: str, error: Exception) -> Unavailable:
    gone = isinstance(error, ClientError) and code_of(error) in GONE
    reason, server = str(error).splitlines()[0], endpoint_of_environment() or "AWS"
    return (Missing if gone else Unavailable)(
        f"{address}: cannot be read from {server} ({reason}): check address and rights"
    )


def fetch(address: str, folder: Path) -> Path:
    """A local copy of the object at an s3:// address, named after its content's version.

    Raises:
        InputError: it is no S3 address.
        Unavailable: it does not exist or cannot be read.
    """
    bucket, key = split_address(address)
    s3 = _environment_client()
    try:
        tag = patiently(s3.head_object)(Bucket=bucket, Key=key)["ETag"]
        stamp = hashlib.sha256(f"{address} {tag}".encode()).hexdigest()[:16]
        local = folder / stamp / Path(key).name[-_LONGEST_NAME:]
        if not local.exists():
            write_whole(local, patiently(s3.get_object)(Bucket=bucket, Key=key)["Body"].read())
    except (BotoCoreError, ClientError) as error:
        raise _unreadable(address, error) from None
    return local
