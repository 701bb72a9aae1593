"""docs/tutorial.md works as it is written: its programs and its commands, one after another."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.commands import ROOT, modcap_command
from tests.test_docs import commands

PAGE = ROOT / "docs/tutorial.md"
_BLOCK = re.compile(r"(<!-- not run: [^\n]* -->\n)?```(python|sh)\n(.*?)```", re.S)


def python(code: str, folder: Path) -> str:
    """Runs a program of the page, which its first line names."""
    file = folder / code.splitlines()[0].removeprefix("# ")
    file.write_text(code, encoding="utf-8")
    command = [sys.executable, str(file)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_tutorial_works_as_written(
    stack: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    said: dict[str, str] = {}
    for unmarked, kind, code in _BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if unmarked:
            continue
        if kind == "python":
            said[code.splitlines()[0]] = python(code, tmp_path)
            continue
        for words in commands(code):
            assert words[0] == "modcap", shlex.join(words)
            done = modcap_command(stack, *words[1:], MODCAP_PREFIX="tutorial")
            assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
            said[words[1]] = done.stdout
    assert "clothes-w4a4 version 1: W4A4" in said["quantize"]
    assert "clothes-w4a4 version 1 is champion" in said["promote"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    right = int(said["# run.py"].split(" of ")[0])
    assert 60 <= right <= 100
    assert float(said["# train.py"].split()[1]) > 70
