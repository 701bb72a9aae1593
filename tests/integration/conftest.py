"""Real servers on loopback, once for the session: SeaweedFS, MLflow, Prefect and Ray."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import prefect.context
import pytest
import ray

from modcap.infra import local
from modcap.tasks.storage.store import Store

LOGINS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "PREFECT_API_AUTH_STRING")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker(pytest.mark.integration)
            item.add_marker(pytest.mark.xdist_group("stack"))  # one stack, in one process


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """A folder for the stack, with a short path."""
    folder = Path(tempfile.mkdtemp(prefix="modcap-test-"))
    os.environ["MODCAP_HOME"] = str(folder)
    yield folder
    local.down(folder)
    os.environ.pop("MODCAP_HOME")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def stack(home: Path) -> Iterator[dict[str, str]]:
    """Everything running; returns the environment of a client, whose logins this process has."""
    found = local.up(home).environment()
    os.environ.update({name: found[name] for name in LOGINS})
    with patch.dict(os.environ, found):
        prefect.context.refresh_global_settings_context()  # read when it was imported
    yield found
    ray.shutdown()
    for name in LOGINS:
        os.environ.pop(name, None)


@pytest.fixture
def store(
    stack: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Store:
    """A store of its own for each test, on the real S3 server."""
    for name, value in stack.items():
        monkeypatch.setenv(name, value)
    prefix = f"test/{request.node.name}"
    return Store(stack["MODCAP_BUCKET"], prefix, stack["AWS_ENDPOINT_URL_S3"])
