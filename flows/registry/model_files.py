"""The files of a registered version: they stand alone, with no package of ours installed."""

from __future__ import annotations

import importlib.metadata
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from modcap.export.artifact import unpack_network
from modcap.flows.registry.library import write_library
from modcap.flows.reports.cell_record import Finished
from modcap.graph.outputs import named_values

from modcap.flows.registry import mlflow_runs  # noqa: F401, isort: skip  # sets what mlflow reads at import
import mlflow  # isort: skip
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

__all__ = ["CLASSES", "save_model"]

CLASSES = "classes.json"  # below the version
_NEEDED = ("mlflow", "numpy", "pydantic", "safetensors", "torch")  # by whoever loads it


def save_model(folder: Path, finished: Finished, model: Model) -> None:
    """Writes all that a version holds into a new ``folder``; ``model`` says whose it is."""
    example = np.zeros((1, *finished.input_shape), np.float32)
    with TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", ".*Add type hints", UserWarning
        )  # the signature says more
        packed, library = Path(scratch, "network.safetensors"), Path(scratch, "modcap.zip")
        packed.write_bytes(finished.artifact)
        write_library(library)
        mlflow.pyfunc.save_model(
            folder,
            mlflow_model=model,
            python_model=str(Path(__file__).with_name("registered_model.py")),
            artifacts={"network": str(packed), "library": str(library)},
            model_config={"artifact_digest": finished.artifact_digest},
            signature=_signature(finished, example),
            input_example=example,
            pip_requirements=_requirements(),
        )
    if finished.classes:
        (folder / CLASSES).write_text(json.dumps(finished.classes))
    for export in finished.exports:
        (folder / export.path).parent.mkdir()
        (folder / export.path).write_bytes(export.data)


def _signature(finished: Finished, example: np.ndarray) -> ModelSignature:
    """Of images, and of what the network returns; several outputs have their names."""
    with torch.no_grad():
        found = unpack_network(finished.artifact)(torch.from_numpy(example))
    outputs: list[ColSpec | TensorSpec] = [
        _spec(value.shape[1:], name or None) for name, value in named_values(found)
    ]
    return ModelSignature(Schema([_spec(finished.input_shape)]), Schema(outputs))


def _spec(shape: Sequence[int], name: str | None = None) -> TensorSpec:
    return TensorSpec(np.dtype(np.float32), (-1, *shape), name)


def _requirements() -> list[str]:
    """What a consumer needs, pinned to what made the model; the library itself comes with it."""
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in _NEEDED}
    return [f"{name}=={version}" for name, version in versions.items()]
