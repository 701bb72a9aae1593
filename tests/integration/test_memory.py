"""A worker out of memory, on a real cluster: its job comes back with a larger grant."""

from __future__ import annotations

import pytest

from tests.integration.commands import within
from tests.integration.hungry import outcome

FITS, NEVER = 1 << 30, 1 << 40  # bytes below which each job runs out of memory


@pytest.fixture(scope="module")
def hungry(stack: dict[str, str]) -> tuple[dict[int, str], str]:
    """What became of each job, and all that was said of both."""
    with within(stack) as (_, err):
        outcomes = {least: outcome(least) for least in (FITS, NEVER)}
    return outcomes, err.getvalue()


def test_a_job_out_of_memory_gets_more_and_says_so(hungry: tuple[dict[int, str], str]) -> None:
    outcomes, said = hungry
    assert outcomes[FITS] == "done"
    for times in (2, 4):
        again = f"hungry: out of memory, started again with {times} times"
        assert said.count(again) == 2  # that of the other job, too


def test_a_job_that_never_fits_ends_in_one_line(hungry: tuple[dict[int, str], str]) -> None:
    refused = hungry[0][NEVER]
    assert refused.startswith(
        "refused: hungry: out of memory with 4 times its estimate, too: lower"
    )
    assert "\n" not in refused
