"""The quantized network as an ONNX file: standard operators that compute what it computes.

Weights are the float images of their integers, and activations are rounded and clipped to their
levels, so that any runtime gives the same classes; the file is as large as a float network.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from modcap.core.errors import Unavailable

__all__ = ["require_onnx", "save_onnx"]


def require_onnx() -> None:
    """Refuses early where the packages for export are missing.

    Raises:
        Unavailable: they are.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise Unavailable(
            f"ONNX needs the package {error.name}: pip install 'modcap[export]'"
        ) from None


def save_onnx(network: nn.Module, input_shape: tuple[int, ...], path: Path) -> None:
    """Writes ``network`` to ``path``, with input ``images`` and output ``logits``.

    Args:
        network: maps (N, C, H, W) float32 to logits, for any N.
        input_shape: (C, H, W).
        path: file that is written.

    Raises:
        InputError: the packages for export are missing.
    """
    require_onnx()
    example = torch.zeros(2, *input_shape)  # two images: one would fix the batch size
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's own code
        program = torch.onnx.export(
            network.eval(),
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    program.save(path)
