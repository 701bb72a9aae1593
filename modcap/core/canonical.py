"""Equal values as equal bytes, and the digest of bytes."""

from __future__ import annotations

import hashlib
import json

__all__ = ["canonical", "digest"]


def canonical(value: object) -> bytes:
    """JSON that is equal for equal values: sorted keys, no spaces, no NaN, UTF-8."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
    ).encode()


def digest(data: bytes) -> str:
    """sha256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
