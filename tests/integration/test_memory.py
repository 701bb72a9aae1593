"""A worker out of memory, on a real cluster: its job comes back with a larger grant."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.integration.commands import ROOT

FITS, NEVER = 1 << 30, 1 << 40  # bytes below which each job runs out of memory


@pytest.fixture(scope="module")
def hungry(stack: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.integration.hungry", str(FITS), str(NEVER)],
        cwd=ROOT,
        env=os.environ | stack,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def test_a_job_out_of_memory_gets_more_and_says_so(
    hungry: subprocess.CompletedProcess[str],
) -> None:
    assert f"{FITS}: done" in hungry.stdout.splitlines()
    for times in (2, 4):
        again = f"hungry: out of memory, started again with {times} times"
        assert hungry.stderr.count(again) == 2  # that of the other job, too


def test_a_job_that_never_fits_ends_in_one_line(
    hungry: subprocess.CompletedProcess[str],
) -> None:
    (refused,) = [line for line in hungry.stdout.splitlines() if line.startswith(f"{NEVER}: ")]
    assert "refused: hungry: out of memory with 4 times its estimate, too: lower" in refused
