"""The connection to S3: one client per process, and what is worth trying again.

botocore's own attempts count, and are over in seconds: while a server starts again, and for a body
that breaks off after its answer, which botocore never asks for twice, ``patiently`` goes by time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from typing import Any

import boto3
from botocore import exceptions as botocore_errors
from botocore.config import Config
from botocore.exceptions import ClientError
from tenacity import (
    RetryCallState,
    retry,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

__all__ = [
    "GONE",
    "answered",
    "client",
    "code_of",
    "endpoint_of_environment",
    "listed",
    "lost",
    "patiently",
]

_PATIENCE = 30.0  # seconds that an S3 server may take to come back
_CONFIG = Config(
    retries={"mode": "standard", "total_max_attempts": 3},
    connect_timeout=5,
    read_timeout=60,
    max_pool_connections=32,
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)
_PASSING = (  # the last one: a body that ended before its length
    botocore_errors.ConnectionError,
    botocore_errors.HTTPClientError,
    botocore_errors.IncompleteReadError,
)
GONE = ("NoSuchKey", "404", "NoSuchBucket", "NotFound")
"""Codes that say that there is no such thing."""


def _passing(error: BaseException) -> bool:
    """Whether trying again may help: no connection, or a server that is just (re)starting."""
    if isinstance(error, ClientError):
        return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) >= 500
    if isinstance(error, botocore_errors.SSLError):  # an authority is not trusted by waiting
        return "CERTIFICATE_VERIFY_FAILED" not in str(error)
    return isinstance(error, _PASSING)


def _out_of_patience(state: RetryCallState) -> bool:
    patience = float(os.environ.get("MODCAP_PATIENCE") or _PATIENCE)
    return stop_after_delay(patience)(state)


_answered: set[str | None] = set()


def answered(endpoint: str | None) -> None:
    """The server was there."""
    _answered.add(endpoint)


def lost(error: Exception, endpoint: str | None) -> bool:
    """Whether a server that had answered this process does so no more."""
    return endpoint in _answered and _passing(error)


patiently = retry(
    retry=retry_if_exception(_passing),
    stop=_out_of_patience,
    wait=wait_random_exponential(multiplier=0.5, max=4),
    reraise=True,
)


def code_of(error: ClientError) -> str:
    """What S3 calls an error."""
    return str(error.response.get("Error", {}).get("Code", ""))


def endpoint_of_environment() -> str | None:
    """The address that boto3 itself would read, or None for AWS."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


@cache
def _client(endpoint: str | None, process: int) -> Any:
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=_CONFIG)


def client(endpoint: str | None = None) -> Any:
    """One client per process; credentials come from the environment or the AWS configuration."""
    return _client(endpoint, os.getpid())


def listed(s3: Any, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    """Every object whose key starts with ``prefix``, page by page, each asked for patiently."""
    page, asked = patiently(s3.list_objects_v2), {"Bucket": bucket, "Prefix": prefix}
    while True:
        found = page(**asked)
        yield from found.get("Contents", [])
        if not found.get("IsTruncated"):
            return
        asked["ContinuationToken"] = found["NextContinuationToken"]
