"""The packed network of a registered version, compared with its tag before it is read."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from modcap.core.errors import InputError
from modcap.core.serialization import expect
from modcap.export.artifact import QuantizedNetwork, unpack_network
from modcap.flows.registry.mlflow_runs import reaching

import mlflow  # isort: skip  # after modcap.flows.registry.mlflow_runs, which sets what it reads at import
from mlflow.entities.model_registry import ModelVersion

__all__ = ["artifact_of_version"]


def artifact_of_version(version: ModelVersion) -> tuple[QuantizedNetwork, int]:
    """The network of a registered version, and its size in bytes. None of its code runs.

    Raises:
        InputError: modcap did not make the version, or it holds something else than was made.
    """
    place = f"{version.name} version {version.version}"
    if "artifact_digest" not in version.tags:
        raise InputError(f"{place} was not made by modcap: it has no tag artifact_digest")
    with TemporaryDirectory() as folder, reaching():
        model = mlflow.artifacts.download_artifacts(
            artifact_uri=f"models:/{version.name}/{version.version}", dst_path=folder
        )
        files = list(Path(model).rglob("network.safetensors"))
        if len(files) != 1:
            raise InputError(f"{place} holds {len(files)} files network.safetensors, not one")
        data = files[0].read_bytes()
    expect(data, version.tags["artifact_digest"], f"the artifact of {place}")
    return unpack_network(data), len(data)
