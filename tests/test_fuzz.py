"""A short part of ``make fuzz``, and that it would find what there is to find."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from modcap.core.errors import InputError
from tests.fuzz import kinds, mutations, run


def test_mutated_files_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    report = run.fuzz(200, 60, 1, list(kinds.KINDS), tmp_path)
    assert not report.findings, report.findings[0]
    assert report.inputs == 200
    assert report.read
    assert report.refused


def _fault(path: Path) -> object:
    return {
        b"0": lambda: None,
        b"1": lambda: {}["x"],
        b"2": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        b"3": lambda: time.sleep(60),
        b"4": lambda: bytearray(3 * 2**30),
        b"5": lambda: (_ for _ in ()).throw(InputError("x" * 2000)),
        b"6": lambda: _refuse(),
        b"7": lambda: os._exit(0),
    }[path.read_bytes()]()


def _refuse() -> None:
    raise InputError("one line")


def test_faults_of_every_kind_are_found_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = kinds.Kind("x", lambda: b"0", lambda _, rng: str(rng.randrange(8)).encode(), _fault)
    monkeypatch.setitem(kinds.KINDS, "x", drawn)
    monkeypatch.setattr(run, "TIME", 0.5)
    report = run.fuzz(40, 60, 0, ["x"], tmp_path)
    assert report.inputs == 40
    assert report.read + report.refused + len(report.findings) == 40
    found = {Path(f.file).read_bytes(): f.reason for f in report.findings}
    words = ("KeyError", "SIGSEGV", "more than 0.5 seconds", "MemoryError", "no line", "exit 0")
    for number, word in zip(b"123457", words, strict=True):
        assert word in found[bytes([number])]
    again = run.fuzz(40, 60, 0, ["x"], tmp_path)
    assert sorted(f.index for f in again.findings) == sorted(f.index for f in report.findings)


def test_what_computes_too_long_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time of the processor: a busy machine makes no finding."""
    ever = kinds.Kind("x", lambda: b"", lambda _, rng: b"", lambda path: any(iter(int, 1)))
    monkeypatch.setitem(kinds.KINDS, "x", ever)
    monkeypatch.setattr(run, "CPU", 0)
    (found,) = run.fuzz(1, 60, 0, ["x"], tmp_path, workers=1).findings
    assert "SIGXCPU" in found.reason


@pytest.mark.parametrize("name", kinds.KINDS)
def test_a_good_file_of_each_kind_is_read_and_mutations_differ(name: str, tmp_path: Path) -> None:
    kind = kinds.KINDS[name]
    good = kind.make()
    path = tmp_path / "class" / name
    path.parent.mkdir()
    path.write_bytes(good)
    kind.read(path)
    changed = {kind.change(good, random.Random(seed)) for seed in range(20)}
    assert len(changed - {good}) > 10


def test_noise_takes_empty_files() -> None:
    assert all(len(mutations.noise(b"", random.Random(seed))) == 0 for seed in range(20))
