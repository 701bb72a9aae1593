"""The registered model, as code that MLflow stores and runs.

MLflow copies this file into the model version (models-from-code), so no pickle is involved. The
version carries the library, too, so it needs no more than its requirements. The artifact beside it
is compared with the digest in the model's config before it is read.
"""

import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch


class QuantizedModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc,name-defined,unused-ignore]
    """What the network returns for preprocessed images (N, C, H, W), float32: logits (N, classes),
    a map, or several tensors by name."""

    def load_context(self, context: Any) -> None:
        sys.path.insert(0, context.artifacts["library"])
        from modcap.core.serialization import expect
        from modcap.export.artifact import unpack_network

        data = Path(context.artifacts["network"]).read_bytes()
        digest = context.model_config["artifact_digest"]
        self.network = unpack_network(expect(data, digest, "the artifact of this version"))

    def predict(self, model_input, params=None):  # type: ignore[no-untyped-def] # MLflow reads hints
        images = torch.from_numpy(np.array(model_input, dtype=np.float32))
        with torch.no_grad():
            found = self.network(images)
        if isinstance(found, dict):
            return {name: value.numpy() for name, value in found.items()}
        return found.numpy()


mlflow.models.set_model(QuantizedModel())
