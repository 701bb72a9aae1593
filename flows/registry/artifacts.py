"""Artifacts by their address: a local path, s3://, or models:/ of the registry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from modcap.core.errors import InputError
from modcap.core.messages import first_line
from modcap.core.serialization import expect
from modcap.flows.requests.local_path import local_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["REGISTRY", "artifact_at", "version_at"]

REGISTRY = "models:/"
_NAMED = re.compile(r"(?:.*/)?artifacts/([0-9a-f]{64})\.safetensors")  # by its digest, in a store


def artifact_at(address: str) -> tuple[bytes, Mapping[str, str]]:
    """The artifact, and the tags of its registered version where it is one. Where a store named it
    by its digest, or a version states that, it is compared before anything of it is read.

    Raises:
        InputError: there is none, or it is not what its version says.
    """
    if address.startswith(REGISTRY):
        return _registered(address)
    try:
        data = local_path(address).read_bytes()
    except OSError as error:
        raise InputError(f"{address}: cannot be read ({error.strerror})") from None
    if named := _NAMED.fullmatch(address):
        expect(data, named[1], f"artifact {address}")
    return data, {}


def version_at(client: MlflowClient, address: str) -> ModelVersion:
    """The registered version at models:/NAME@alias or models:/NAME/VERSION.

    Raises:
        InputError: there is none.
    """
    from mlflow.exceptions import MlflowException

    name, at, alias = address.removeprefix(REGISTRY).partition("@")
    try:
        if at:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(*name.split("/", 1))
    except (MlflowException, TypeError) as error:
        raise _not_there(address, error) from None


def _not_there(address: str, error: Exception) -> Exception:
    """What to raise: that MLflow cannot be reached is said elsewhere."""
    if "API request to" in str(error):
        return error
    return InputError(
        f"{address}: not in the registry ({first_line(error)}): give models:/NAME@alias or "
        "models:/NAME/VERSION"
    )


def _registered(address: str) -> tuple[bytes, Mapping[str, str]]:
    from modcap.flows.registry.mlflow_runs import reaching

    import mlflow  # isort: skip  # after modcap.flows.registry.mlflow_runs, which sets what it reads at import
    from mlflow.exceptions import MlflowException

    with reaching() as client, TemporaryDirectory() as folder:
        version = version_at(client, address)
        own = f"{REGISTRY}{version.name}/{version.version}"
        try:
            model = mlflow.artifacts.download_artifacts(artifact_uri=own, dst_path=folder)
        except MlflowException as error:
            raise _not_there(address, error) from None
        data = (Path(model) / "artifacts/network.safetensors").read_bytes()
    expect(data, version.tags.get("artifact_digest", ""), f"{own}: its artifact")
    return data, version.tags
