"""Names that somebody else chose, on a terminal; and files of theirs, on this machine's disk."""

from __future__ import annotations

import io
import os
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from modcap.flows import cli, scan
from modcap.flows.cli.registry import show_checkpoints
from modcap.flows.execution.progress import Progress
from modcap.flows.requests.scan_policy import Policy
from modcap.tasks.storage import objects
from modcap.tasks.storage.store import Store
from modcap.tasks.workers.isolation import Limits

EVIL = "s3://b/in/[/red][link=http://evil]\x1b[2J\x1b]0;owned\x07.pt"


def test_a_table_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"checkpoint": EVIL, "state": "bad", "versions": [], "reason": f"{EVIL}: [/] is bad"}
    done = {"busy": False, "checkpoints": [row], "executed": 0, "seconds": 1.0}
    show_checkpoints(done | {"prefix": "s3://elsewhere"})
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[/red]" in out.replace("\n", "")


def test_a_note_moves_no_terminal() -> None:
    out = io.StringIO()
    Progress(Console(file=out)).note(f"{EVIL}: failed")
    assert "\x1b" not in out.getvalue()
    assert "\x07" not in out.getvalue()
    assert "[/red]" in out.getvalue()


def test_the_last_line_of_a_command_moves_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert cli._fail(f"1 of 3 checkpoints failed: {EVIL}", 1) == 1
    assert "\x1b" not in capsys.readouterr().err


def test_the_oldest_of_too_many_copies_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are still being written, or read, stay."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(objects, "_MOST", 25)
    folder = objects.cache_folder("fetched") / "stamp"
    folder.mkdir(parents=True)
    for minutes in (1, 2, 3, 20, 30, 40):
        (folder / f"{minutes}").write_bytes(bytes(10))
        then = time.time() - 60 * minutes
        os.utime(folder / f"{minutes}", (then, then))
    objects.cache_folder("fetched")
    assert {file.name for file in folder.iterdir()} == {"1", "2", "3"}
    monkeypatch.setattr(objects, "_MOST", 45)
    (folder / "20").write_bytes(bytes(10))
    objects.cache_folder("fetched")
    assert {file.name for file in folder.iterdir()} == {"1", "2", "3", "20"}


class Empty:
    """A store that knows nothing."""

    def get_document(self, name: str) -> None:
        return None


def test_a_checkpoint_that_is_too_large_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    long_ago = datetime(2020, 1, 1, tzinfo=timezone.utc)
    there = [objects.Found(f"s3://b/in/{n}.pt2", "v", n, long_ago) for n in (10, 11)]
    monkeypatch.setattr(scan, "find", lambda prefix: there)
    policy = Policy.model_validate({"rules": [{"data": "d.npz", "recipes": [{}]}]})
    found: list[Any] = []
    limits = Limits(file_bytes=10)
    new, _ = scan._news("s3://b/in", policy, cast(Store, Empty()), found, limits)
    assert [each.candidate.address for each in new] == ["s3://b/in/10.pt2"]
    ((address, state),) = [(each.checkpoint, each.state) for each in found]
    assert (address, state) == ("s3://b/in/11.pt2", "bad")
