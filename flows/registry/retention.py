"""Retention: what of the store nothing registered refers to, and whether all of it is whole."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import Any

from modcap.core.errors import InputError
from modcap.flows.registry.mlflow_runs import reaching
from modcap.flows.registry.version_tags import ARTIFACT, JOBS
from modcap.tasks.storage.store import Entry, Store

__all__ = ["collect_garbage", "verify"]


def registered() -> tuple[set[str], set[str]]:
    """(keys of the last jobs, digests of the artifacts) of every registered version."""
    jobs: set[str] = set()
    artifacts: set[str] = set()
    with reaching() as client:
        token: str | None = None
        while True:
            page = client.search_model_versions(max_results=200, page_token=token)
            for version in page:
                jobs |= set(version.tags.get(JOBS, "").split())
                artifacts |= {version.tags.get(ARTIFACT, "")}
            token = page.token
            if not token:
                return jobs, artifacts


def needed(store: Store, roots: Iterable[str]) -> tuple[set[str], set[str]]:
    """(keys, digests of inputs) that the results of ``roots`` were made from, roots included."""
    keys: set[str] = set()
    inputs: set[str] = set()
    waiting = list(roots)
    while waiting:
        key = waiting.pop()
        if key in keys:
            continue
        keys.add(key)
        meta = store.meta(key)
        if meta is not None:
            waiting += meta.get("needs", [])
            inputs |= set(meta.get("inputs", {}).values())
    return keys, inputs


def collect_garbage(
    store: Store, older_than: timedelta, *, dry_run: bool, force: bool = False
) -> dict[str, Any]:
    """Removes results, inputs and artifacts that no registered version was made from.

    A run that is under way may lose a result that it counted on; it computes it again. A registry
    that knows nothing of what lies in the store is taken for the wrong one.

    Args:
        store: what is cleaned.
        older_than: younger ones stay.
        dry_run: only report.
        force: even where no registered version was made from this store.

    Raises:
        InputError: no registered version was made from this store.
    """
    roots, artifacts = registered()
    keys, inputs = needed(store, roots)
    kept = {"jobs": keys, "inputs": inputs, "artifacts": artifacts}
    limit = datetime.now(timezone.utc) - older_than
    entries = list(store.entries())
    newest: dict[tuple[str, str], datetime] = {}
    for entry in entries:
        name = (entry.kind, entry.key)
        newest[name] = max(newest.get(name, entry.modified), entry.modified)
    goes: list[Entry] = []
    stays: list[Entry] = []
    for entry in entries:
        wanted = entry.key in kept[entry.kind] or newest[entry.kind, entry.key] >= limit
        (stays if wanted else goes).append(entry)
    stored = {entry.key for entry in entries if entry.kind == "artifacts"}
    if goes and not force and not stored & artifacts:
        raise InputError(
            f"none of the {len(artifacts)} artifacts of registered versions is in this store, so "
            "all of it that is old enough would go: check MLFLOW_TRACKING_URI, MODCAP_BUCKET and "
            "MODCAP_PREFIX, or say --force"
        )
    if not dry_run:
        store.remove(sorted(goes, key=lambda entry: not entry.name.endswith("result.json")))
    return {
        "dry_run": dry_run,
        "registered_versions": len(artifacts),
        "kept": _count(stays),
        "removed": _count(goes),
    }


def _count(entries: Iterable[Entry]) -> dict[str, int]:
    found = list(entries)
    counts = {
        kind: len({entry.key for entry in found if entry.kind == kind})
        for kind in ("jobs", "inputs", "artifacts")
    }
    return counts | {"bytes": sum(entry.bytes for entry in found)}


def verify(store: Store) -> dict[str, Any]:
    """Reads all of the store and compares it with its checksums."""
    damaged = [{"object": name, "reason": reason} for name, reason in store.verify()]
    return {"checked": sum(1 for _ in store.entries()), "damaged": damaged}
