"""What a benchmark measures again, and what it keeps when it is stopped."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cells import Known, collect, identity
from modcap.jobs.job import REVISION

NAMES = ("name",)


def measure(name: str, digest: str, top1: float, known: Known) -> list[dict[str, Any]]:
    row = {"name": name, "digest": digest, "revision": REVISION, "top1": top1}
    return [] if known.get(identity(row, NAMES)) == digest else [row]


def miss(name: str, known: Known) -> list[dict[str, Any]]:
    return [{"name": name, "digest": "other", "error": "not done after 1 s"}]


def fail(known: Known) -> list[dict[str, Any]]:
    raise ValueError("no memory")


def top1(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {row["name"]: row["top1"] for row in rows}


def test_only_what_changed_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    first = [partial(measure, name, "old", 1.0) for name in ("a", "b")]
    collect(path, NAMES, first, 1)
    second = [partial(measure, "a", "old", 2.0), partial(measure, "b", "new", 2.0)]
    assert top1(collect(path, NAMES, second, 1)) == {"a": 1.0, "b": 2.0}
    assert top1(json.loads(path.read_text())) == {"a": 1.0, "b": 2.0}
    assert top1(collect(path, NAMES, second, 1, fresh=True)) == {"a": 2.0, "b": 2.0}


def test_rows_of_another_revision_stay_until_they_are_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    old = {"digest": "same", "revision": REVISION - 1, "top1": 1.0}
    path.write_text(json.dumps([{"name": name} | old for name in ("a", "b")]))
    rows = collect(path, NAMES, [partial(measure, "a", "same", 2.0)], 1)
    assert top1(rows) == {"a": 2.0, "b": 1.0}


def test_a_failure_comes_after_all_others_were_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    with pytest.raises(ValueError, match="no memory"):
        collect(path, NAMES, [fail, partial(measure, "a", "x", 1.0)], 1)
    assert top1(json.loads(path.read_text())) == {"a": 1.0}


def test_what_cannot_be_measured_leaves_figures_that_were(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    collect(path, NAMES, [partial(measure, "a", "old", 1.0)], 1)
    rows = collect(path, NAMES, [partial(miss, name) for name in ("a", "b")], 1)
    assert [row.get("error") for row in rows] == [None, "not done after 1 s"]
    again = collect(path, NAMES, [partial(measure, name, "x", 2.0) for name in ("a", "b")], 1)
    assert top1(again) == {"a": 2.0, "b": 2.0}


def test_rows_without_a_digest_are_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"name": "a", "revision": REVISION, "top1": 1.0}]))
    assert top1(collect(path, NAMES, [partial(measure, "a", "x", 2.0)], 1)) == {"a": 2.0}
