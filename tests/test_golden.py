"""What a revision of the algorithm fixes: keys of jobs, and the integers that they give.

``tests/data/golden.json`` holds both for the revision that it names. Where they change and the
revision stays, results that users have stored would be taken for what they no longer are. After a
change that is meant, raise ``REVISION`` and run ``python -m tests.test_golden``.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from modcap.jobs.job import REVISION
from tests.golden import KEYS, QUANTIZED, job_keys, quantized
from tests.rooms import ROOT

FILE = ROOT / "tests/data/golden.json"


def golden() -> dict[str, Any]:
    known: dict[str, Any] = json.loads(FILE.read_text())
    return known


def measured() -> dict[str, Any]:
    return {
        "revision": REVISION,
        "keys": {name: job_keys(name) for name in KEYS},
        "integers": {name: quantized(name)[0] for name in QUANTIZED},
    }


def test_they_are_of_this_revision() -> None:
    assert golden()["revision"] == REVISION, "run python -m tests.test_golden"


@pytest.mark.parametrize("name", list(KEYS))
def test_keys(name: str) -> None:
    assert job_keys(name) == golden()["keys"][name]


@pytest.mark.parametrize("name", list(QUANTIZED))
def test_integers(name: str) -> None:
    assert quantized(name)[0] == golden()["integers"][name]


def test_artifacts_are_equal_in_every_run_and_whatever_the_caller_has_set() -> None:
    threads = torch.get_num_threads()
    try:
        found = set()
        for count in (1, 2):
            torch.set_num_threads(count)
            torch.manual_seed(count)
            found.add(quantized("quick"))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


if __name__ == "__main__":
    FILE.write_text(json.dumps(measured(), indent=1, sort_keys=True) + "\n")
