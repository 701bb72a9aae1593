"""What may lie in S3, as a local path."""

from __future__ import annotations

from pathlib import Path

__all__ = ["local_path"]


def local_path(address: str) -> Path:
    """A local path of what may lie in S3."""
    if address.startswith("s3://"):
        from modcap.tasks.storage.objects import cache_folder, fetch

        return fetch(address, cache_folder("fetched"))
    return Path(address)
