"""The deployed stack from a client's side: hosts, PostgreSQL, passwords, by compose.yaml."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modcap.core.serialization import digest
from modcap.recipe.recipe import Recipe
from tests.deployed.deployment import Deployment, deployed
from tests.integration.commands import ARCH, CHECKPOINT, ROOT, alone

pytestmark = [pytest.mark.deployed, pytest.mark.timeout(1800)]

OPTIONS: dict[str, Any] = {"calibration": 64, "optimiser": {"iterations": 10, "batch_size": 16}}
NETWORK = str(Path("/work") / CHECKPOINT.relative_to(ROOT / "examples"))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("deployed"), ray_worker=2) as made:
        joined = made.client.run("ray", "start", "--address=ray-head:6379", "--num-cpus=0")
        assert joined.returncode == 0, joined.stderr
        yield made


def modcap(stack: Deployment, *words: str, **environment: str) -> dict[str, Any]:
    done = stack.client.run("modcap", *words, "--json", environment=environment, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def report(stack: Deployment) -> dict[str, Any]:
    """Of the main job."""
    flags = ("--arch", ARCH, "--data", "fashion-mnist", "--w-bits", "4", "--a-bits", "4")
    small = ("--calibration", "64", "--iterations", "10", "--batch-size", "16", "--k", "2")
    return modcap(stack, "quantize", NETWORK, *flags, *small, "--eval-images", "500")


def test_the_artifact_is_that_of_the_library(report: dict[str, Any]) -> None:
    assert report["fp_top1"] > 90
    recipe = Recipe.preset("quick", w_bits=4, a_bits=4, k=2, **OPTIONS)
    assert report["artifact_digest"] == digest(alone(recipe))
