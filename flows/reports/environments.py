"""In which environments the jobs of a cell were computed: keys do not tell them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from modcap.flows.execution.job_results import Results
from modcap.jobs.plan import CellPlan

__all__ = ["environments_of", "in_words"]

_FIELDS = ("torch", "device", "processor")
_UNKNOWN = dict.fromkeys(_FIELDS, "unknown")  # of results from before it was noted


def environments_of(cell: CellPlan, results: Results) -> list[dict[str, Any]]:
    """Each with its number of ``jobs``, those of most jobs first; one where all were alike."""
    counts = Counter(
        tuple((results[key].meta.get("environment") or _UNKNOWN).get(f, "") for f in _FIELDS)
        for key in _all_keys(cell, results)
    )
    return [
        dict(zip(_FIELDS, found, strict=True)) | {"jobs": count}
        for found, count in sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    ]


def _all_keys(cell: CellPlan, results: Results) -> set[str]:
    """Of every job that the cell was made by."""
    found: set[str] = set()
    ahead = [cell.select, cell.evaluate, cell.evaluate_full, *cell.exports]
    while ahead:
        key = ahead.pop()
        if key not in found:
            found.add(key)
            ahead += results[key].meta.get("needs", [])
    return found


def in_words(environments: Sequence[dict[str, Any]]) -> str:
    """For people and tags."""
    return "; ".join(f"torch {e['torch']} on {e['device']}, {e['processor']}" for e in environments)
