"""Real servers on loopback, once for the session: SeaweedFS, MLflow, Prefect and Ray."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from modcap.infra import local
from modcap.tasks.storage.store import Store

SERVICES = ("AWS_", "MLFLOW_", "PREFECT_", "RAY_", "MODCAP_")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """A folder for the stack, with a short path and no configured service beside it."""
    folder = Path(tempfile.mkdtemp(prefix="modcap-test-"))
    before = {k: os.environ.pop(k) for k in list(os.environ) if k.startswith(SERVICES)}
    os.environ["MODCAP_HOME"] = str(folder)
    yield folder
    local.down(folder)
    os.environ.pop("MODCAP_HOME")
    os.environ.update(before)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def stack(home: Path) -> dict[str, str]:
    """Everything running; returns the environment of a client."""
    return local.up(home).environment()


@pytest.fixture
def store(
    stack: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Store:
    """A store of its own for each test, on the real S3 server."""
    for name, value in stack.items():
        monkeypatch.setenv(name, value)
    prefix = f"test/{request.node.name}"
    return Store(stack["MODCAP_BUCKET"], prefix, stack["AWS_ENDPOINT_URL_S3"])
