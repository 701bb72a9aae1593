"""A worker out of memory, on a real cluster: its job comes back with a larger grant."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.integration.commands import ROOT


def hungry(stack: dict[str, str], least: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.integration.hungry", str(least)],
        cwd=ROOT,
        env=os.environ | stack,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_job_out_of_memory_gets_more_and_says_so(stack: dict[str, str]) -> None:
    done = hungry(stack, 1 << 30)
    assert done.returncode == 0, done.stderr
    for times in (2, 4):
        assert f"hungry: out of memory, started again with {times} times" in done.stderr


def test_a_job_that_never_fits_ends_in_one_line(stack: dict[str, str]) -> None:
    done = hungry(stack, 1 << 40)
    assert done.returncode == 1
    assert "refused: hungry: out of memory with 4 times its estimate, too: lower" in done.stderr
