"""The script that checks a GPU, without one: it runs on the first machine that has one, once."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from benchmarks.check_gpu import __main__ as check
from benchmarks.check_gpu.sections import SECTIONS
from benchmarks.check_gpu.subject import Asked
from benchmarks.check_gpu.table import page
from benchmarks.check_gpu.wheels import without

CHILD = """#!/bin/sh
case "$4" in
  environment) echo 'told to a log'; echo '{"torch": "2 | 3"}';;
  equal) exit 3;;
  determinism) echo '{"net": "aa"}';;
  again) echo '{"net": "ab"}';;
  *) sleep 60;;
esac
"""


def test_sections_end_apart_and_what_others_found_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "python"
    child.write_text(CHILD)
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    names = ("environment", "equal", "determinism", "again", "ray")
    limits = {**dict.fromkeys(names, 20.0), "ray": 0.5}
    monkeypatch.setattr(check, "_chosen", lambda args: limits)
    monkeypatch.setattr(check, "_LEAST", 0.1)
    assert check.main(["--out", str(tmp_path / "out")]) == 1
    found = json.loads((tmp_path / "out/check_gpu.json").read_text())
    assert found["environment"]["torch"] == "2 | 3"
    assert found["equal"]["error"] == "ended with 3, and said nothing"
    assert found["again"]["error"] == "another process gave other bytes"
    assert found["ray"]["error"].startswith("not done after")
    assert found["ray"]["section_seconds"] < 20
    assert (tmp_path / "out/check_gpu.md").read_text() == page(found)
    assert "torch: 2 / 3" in page(found)


def test_nothing_starts_when_the_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/none")
    assert check.main(["--minutes", "0", "--only", "environment", "--out", str(tmp_path)]) == 1
    assert json.loads((tmp_path / "check_gpu.json").read_text()) == {
        "environment": {"error": "no time left"}
    }


def test_a_run_is_measured_job_by_job() -> None:
    figures = SECTIONS["resnet50"].run(Asked("cpu", quick=True))
    kinds = {job["kind"] for job in figures["jobs"]}
    assert {"reconstruct", "tune", "evaluate", "assemble"} <= kinds
    assert all(job["ms_per_step"] > 0 for job in figures["jobs"] if "steps" in job)
    text = page({"resnet50": figures})
    assert f"## resnet50: {figures['seconds']} s" in text
    assert "| tune | 1 |" in text


def test_a_section_that_fails_says_so_in_its_last_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", None)
    assert check.main(["--section", "environment"]) == 1
    assert "error" in json.loads(capsys.readouterr().out.splitlines()[-1])


def test_wheels_lose_what_nothing_reads(tmp_path: Path) -> None:
    wheel = tmp_path / "ray-1-py3-none-any.whl"
    names = ("ray/__init__.py", "ray/jars/a.jar", "ray/jars/kept/b", "ray-1.dist-info/RECORD")
    with zipfile.ZipFile(wheel, "w") as file:
        for name in names[:3]:
            file.writestr(name, "x = 1")
        file.writestr(names[3], "".join(f"{name},,\n" for name in names))
    without(wheel, ("ray/jars/",), ("ray/jars/kept/",))
    with zipfile.ZipFile(wheel) as file:
        left = {name for name in names if name != "ray/jars/a.jar"}
        assert set(file.namelist()) == left
        record = file.read("ray-1.dist-info/RECORD").decode().split()
    assert {line.partition(",")[0] for line in record} == left
    assert list(tmp_path.iterdir()) == [wheel]
