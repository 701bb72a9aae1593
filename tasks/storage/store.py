"""The store: results of jobs, inputs and artifacts in S3, written once and verified on read.

Layout, under an optional prefix::

    jobs/<key>/<sha256>.safetensors   tensors of a result, named by their content
    jobs/<key>/result.json            meta and checksums; its conditional put is the commit
    inputs/<sha256>                   networks and images that jobs read
    artifacts/<sha256>.safetensors    packed quantized networks
    scans/<digest>.json               what a scan made of a checkpoint
    leases/<name>.json                who does what is done once at a time
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import IO, Any

from botocore.exceptions import BotoCoreError, ClientError

from modcap.core.authorities import mend_connection
from modcap.core.errors import InputError, Unavailable
from modcap.core.messages import first_line
from modcap.core.serialization import DamagedResult, Result, decode, digest, encode, encode_tensors
from modcap.tasks.storage.objects import digest_of, download
from modcap.tasks.storage.s3 import (
    GONE,
    answered,
    client,
    code_of,
    endpoint_of_environment,
    listed,
    patiently,
)

__all__ = ["Entry", "MissingInput", "Store"]

_FRESH = timedelta(days=1)  # an input that is older is uploaded again by a run that uses it
_PAGE = 1000  # objects that one request lists
_WORTH = 20  # objects are listed in the time of one question for a single object
_REQUESTS = 16  # at once
_TAKEN = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
_CHUNK = 1 << 20
_SHA256 = re.compile("[0-9a-f]{64}")


class MissingInput(DamagedResult):
    """An input of a job is not in the store, or not what its digest says: put it there again."""


@dataclass(frozen=True)
class Entry:
    """An object of the store: its kind (jobs, inputs, artifacts), the key or digest it is for."""

    kind: str
    key: str
    name: str
    bytes: int
    modified: datetime


@dataclass(frozen=True)
class Store:
    """Where results of jobs live. A value: it ships to workers as its three fields."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None

    @classmethod
    def from_environment(cls) -> Store:
        """``MODCAP_BUCKET``, ``MODCAP_PREFIX`` and the endpoint that boto3 itself reads.

        Raises:
            InputError: no bucket is named.
        """
        bucket = os.environ.get("MODCAP_BUCKET")
        if not bucket:
            raise InputError("MODCAP_BUCKET is not set: name the S3 bucket for results")
        return cls(bucket, os.environ.get("MODCAP_PREFIX", ""), endpoint_of_environment())

    @property
    def _s3(self) -> Any:
        return client(self.endpoint)

    def _name(self, name: str) -> str:
        return f"{self.prefix.strip('/')}/{name}" if self.prefix else name

    def ensure_bucket(self) -> None:
        """Creates the bucket where it is missing.

        Raises:
            Unavailable: S3 cannot be reached, or refuses.
        """
        try:
            self._ensure_bucket()
            answered(self.endpoint)
        except (BotoCoreError, ClientError) as error:
            where, said = self.endpoint or "AWS", str(error).splitlines()[0]
            mend = "check the endpoint, the credentials and that the server runs"
            mend = mend_connection("S3", said, mend)
            raise Unavailable(f"S3 at {where}, bucket '{self.bucket}': {said}: {mend}") from None

    @patiently
    def _ensure_bucket(self) -> None:
        try:
            self._s3.head_bucket(Bucket=self.bucket)
        except ClientError as error:
            if code_of(error) not in GONE:
                raise
            self._s3.create_bucket(Bucket=self.bucket)

    def _get(self, name: str) -> bytes | None:
        found = self.get_document(name)
        return None if found is None else found[0]

    @patiently
    def _head(self, name: str) -> dict[str, Any] | None:
        try:
            return dict(self._s3.head_object(Bucket=self.bucket, Key=self._name(name)))
        except ClientError as error:
            if code_of(error) in GONE:
                return None
            raise

    def put(self, key: str, result: Result) -> bool:
        """Stores a result once; False where somebody else was first."""
        document, tensors = encode(result)
        if result.tensors:
            self.put_document(f"jobs/{key}/{digest(tensors)}.safetensors", tensors)
        return self.put_document(f"jobs/{key}/result.json", document, unless="exists") is not None

    def settle(self, key: str, result: Result) -> Result:
        """The result that holds from now on: ``result``, or that of somebody who was first."""
        while not self.put(key, result):
            first = self.get(key)
            if first is not None:
                return first
        return result

    def get(self, key: str) -> Result | None:
        """The verified result, or None; a damaged one is set aside, to be computed again."""
        found = self.get_document(f"jobs/{key}/result.json")
        if found is None:
            return None
        try:
            return self._complete(key, found[0])
        except DamagedResult as error:
            self._set_aside(key, *found, str(error))
            return None

    def get_all(self, keys: Iterable[str]) -> dict[str, Result]:
        """The verified results of those of ``keys`` that have one, read side by side."""
        wanted = list(keys)
        with ThreadPoolExecutor(_REQUESTS) as pool:
            found = pool.map(self.get, wanted)
            return {k: result for k, result in zip(wanted, found, strict=True) if result}

    def _complete(self, key: str, document: bytes) -> Result:
        stated = decode_checksum(document)
        if stated == digest(encode_tensors({})):
            return decode(document, encode_tensors({}))
        tensors = self._get(f"jobs/{key}/{stated}.safetensors")
        if tensors is None:
            raise DamagedResult("its tensors are missing")
        return decode(document, tensors)

    def _set_aside(self, key: str, document: bytes, version: str, reason: str) -> None:
        """Only what was read: a good result may have taken its place by now."""
        warnings.warn(f"result of job {key[:12]} is damaged ({reason}): set aside", stacklevel=3)
        self.put_document(f"jobs/{key}/damaged-{time.time_ns()}.json", document)
        self.delete_document(f"jobs/{key}/result.json", only_if=version)

    def done(self, keys: Iterable[str]) -> set[str]:
        """Those of ``keys`` that have a result, whole or not: by one question for each, or by a
        listing where the store holds little else."""
        wanted = list(keys)
        if len(wanted) > _PAGE and self._objects("jobs/") <= _WORTH * len(wanted):
            return set(wanted).intersection(self.keys())
        with ThreadPoolExecutor(_REQUESTS) as pool:
            found = pool.map(lambda key: self._head(f"jobs/{key}/result.json"), wanted)
            return {key for key, head in zip(wanted, found, strict=True) if head is not None}

    @patiently
    def _objects(self, start: str) -> float:
        """How many objects there are, from the first page: their names are even in hexadecimal."""
        prefix = self._name(start)
        page = self._s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix, MaxKeys=_PAGE)
        if not page["IsTruncated"]:
            return float(page.get("KeyCount", 0))
        last = page["Contents"][-1]["Key"].removeprefix(prefix)[:12]
        try:
            return float(_PAGE * 16 ** len(last) / (int(last, 16) + 1))
        except ValueError:  # no key of a job
            return float("inf")

    @patiently
    def put_document(
        self, name: str, data: bytes, *, unless: str | None = None, only_if: str | None = None
    ) -> str | None:
        """Writes an object; its version, or None where the condition does not hold.

        Args:
            name: under the prefix.
            data: its content.
            unless: ``exists``: only where there is none.
            only_if: the version (ETag) that it replaces.
        """
        condition = {"IfNoneMatch": "*"} if unless == "exists" else {}
        if only_if is not None:
            condition = {"IfMatch": only_if}
        try:
            made = self._s3.put_object(
                Bucket=self.bucket, Key=self._name(name), Body=data, **condition
            )
        except ClientError as error:
            if condition and code_of(error) in (*_TAKEN, *GONE):
                return None
            raise
        return str(made["ETag"])

    @patiently
    def get_document(self, name: str) -> tuple[bytes, str] | None:
        """(content, version), or None."""
        try:
            found = self._s3.get_object(Bucket=self.bucket, Key=self._name(name))
            with contextlib.closing(found["Body"]) as body:
                return body.read(), str(found["ETag"])
        except ClientError as error:
            if code_of(error) in GONE:
                return None
            raise

    @patiently
    def delete_document(self, name: str, *, only_if: str | None = None) -> None:
        """Removes it; nothing happens where there is none, or, with ``only_if``, where it is
        another version (ETag) than that."""
        condition = {} if only_if is None else {"IfMatch": only_if}
        try:
            self._s3.delete_object(Bucket=self.bucket, Key=self._name(name), **condition)
        except ClientError as error:
            if code_of(error) not in (*_TAKEN, *GONE):
                raise

    def upload_input(self, name: str, data: bytes) -> None:
        """Stores an input under its sha256, unless it is there, of its size, and too young for
        a collection of garbage to take it away under a run."""
        if not self._has_input(name, len(data)):
            self._upload(f"inputs/{name}", data)

    def upload_large_input(self, name: str, size: int, write: Callable[[IO[bytes]], None]) -> None:
        """The same of ``size`` bytes that ``write`` gives, by way of a temporary file."""
        if self._has_input(name, size):
            return
        with tempfile.TemporaryFile() as file:
            write(file)
            file.flush()
            self._upload(f"inputs/{name}", file)

    def _has_input(self, name: str, size: int) -> bool:
        head = self._head(f"inputs/{name}")
        young = datetime.now(timezone.utc) - _FRESH
        return bool(head and head["ContentLength"] == size and head["LastModified"] > young)

    @patiently
    def _upload(self, name: str, data: bytes | IO[bytes]) -> None:
        """Writes an object of any size, in parts where it is large."""
        if isinstance(data, bytes):
            body: Any = io.BytesIO(data)
        else:
            body = open(data.fileno(), "rb", closefd=False)  # noqa: SIM115  # S3's client closes it
            body.seek(0)
        self._s3.upload_fileobj(body, self.bucket, self._name(name))

    def fetch_input(self, name: str, folder: Path) -> Path:
        """A verified local copy of an input, in ``folder``, fetched where it is not there whole.

        Raises:
            MissingInput: the input is missing, or not what its digest says; such a one is removed,
                so that whoever has it puts it there again.
        """
        local = folder / name
        if local.exists() and digest_of(local) == name:
            return local
        found = self._download(f"inputs/{name}", local, name)
        if found is not None and found[0] == name:
            return local
        if found is not None:
            with contextlib.suppress(ClientError):  # not everybody may
                self.delete_document(f"inputs/{name}", only_if=found[1])
        raise MissingInput(
            f"input {name[:12]} is missing or damaged in the store: quantize its checkpoint "
            "again, which puts it there"
        )

    @patiently
    def _download(self, name: str, local: Path, expected: str) -> tuple[str, str] | None:
        """(sha256, version) of an object, or None; a local copy of it, where that is expected."""
        try:
            found = self._s3.get_object(Bucket=self.bucket, Key=self._name(name))
        except ClientError as error:
            if code_of(error) in GONE:
                return None
            raise
        return download(found["Body"], local, expected), str(found["ETag"])

    def put_artifact(self, name: str, data: bytes) -> str:
        """Stores a packed network under its digest and returns its s3:// address.

        Raises:
            DamagedResult: it is something else than its digest says.
        """
        if digest(data) != name:
            raise DamagedResult(f"artifact {name[:12]} is not what its digest says")
        self._upload(f"artifacts/{name}.safetensors", data)
        return f"s3://{self.bucket}/{self._name(f'artifacts/{name}.safetensors')}"

    def keys(self) -> Iterator[str]:
        """Keys of all jobs that have a result."""
        for entry in self.entries("jobs"):
            if entry.name.endswith("/result.json"):
                yield entry.key

    def entries(self, *kinds: str) -> Iterator[Entry]:
        """Every object of the store, of these kinds where some are named."""
        for kind in kinds or ("jobs", "inputs", "artifacts"):
            start = self._name(f"{kind}/")
            for found in listed(self._s3, self.bucket, start):
                rest = found["Key"].removeprefix(start)
                key = rest.partition("/")[0].removesuffix(".safetensors")
                yield Entry(kind, key, f"{kind}/{rest}", found["Size"], found["LastModified"])

    def remove(self, entries: Iterable[Entry]) -> None:
        """Deletes these objects."""
        for entry in entries:
            self.delete_document(entry.name)

    def meta(self, key: str) -> dict[str, Any] | None:
        """The JSON part of a result, or None; its tensors are not read."""
        document = self._get(f"jobs/{key}/result.json")
        try:
            return dict(json.loads(document)["meta"]) if document is not None else None
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def verify(self) -> Iterator[tuple[str, str]]:
        """(object, what is wrong) wherever a checksum does not hold."""
        for entry in self.entries():
            if entry.kind == "jobs":
                if entry.name.endswith("/result.json"):
                    document = self._get(entry.name)
                    try:
                        if document is not None:
                            self._complete(entry.key, document)
                    except DamagedResult as error:
                        yield entry.name, str(error)
            elif self._digest(entry.name) not in (entry.key, None):
                yield entry.name, "it is not what its name says"

    @patiently
    def _digest(self, name: str) -> str | None:
        """The sha256 of an object, whatever its size, or None where there is none."""
        try:
            body = self._s3.get_object(Bucket=self.bucket, Key=self._name(name))["Body"]
        except ClientError as error:
            if code_of(error) in GONE:
                return None
            raise
        found = hashlib.sha256()
        with contextlib.closing(body):
            for chunk in body.iter_chunks(_CHUNK):
                found.update(chunk)
        return found.hexdigest()


def decode_checksum(document: bytes) -> str:
    """The checksum of the tensors that a result's JSON states."""
    try:
        stated = str(json.loads(document)["tensors_sha256"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedResult(f"the JSON part does not parse: {first_line(error)}") from error
    if not _SHA256.fullmatch(stated):
        raise DamagedResult("the JSON part names no checksum of tensors")
    return stated
