"""The registered model, as code that MLflow stores and runs: it needs modcap and torch alone.

MLflow copies this file into the model version (models-from-code), so no pickle is involved.
"""

from typing import Any

import mlflow
import numpy as np
import torch

from modcap.export import artifact


class QuantizedClassifier(mlflow.pyfunc.PythonModel):  # type: ignore[misc,name-defined,unused-ignore]
    """Logits (N, classes) of preprocessed images (N, C, H, W), float32."""

    def load_context(self, context: Any) -> None:
        self.network = artifact.load(context.artifacts["network"])

    def predict(self, model_input, params=None):  # type: ignore[no-untyped-def] # MLflow reads hints
        images = torch.from_numpy(np.array(model_input, dtype=np.float32))
        with torch.no_grad():
            return self.network(images).numpy()


mlflow.models.set_model(QuantizedClassifier())
