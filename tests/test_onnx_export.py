"""The ONNX form computes what the quantized network computes, for any number of images."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import modcap
from modcap.core.errors import InputError
from modcap.export.onnx_export import require_onnx, save_onnx
from modcap.recipe import Recipe
from tests.networks import make


def test_onnxruntime_agrees_with_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, _ = make("zoo_vgg")
    images = torch.randn(32, 1, 28, 28)
    recipe = Recipe.preset("quick", w_bits=4, a_bits=4, method="rtn", k=0, calibration=len(images))
    quantized = modcap.quantize(network, images, recipe).network
    file = tmp_path / "network.onnx"
    save_onnx(quantized, tuple(images.shape[1:]), file)
    onnx.checker.check_model(onnx.load(file), full_check=True)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        with torch.no_grad():
            expected = quantized(images[:count]).numpy()
        (logits,) = session.run(["logits"], {"images": images[:count].numpy()})
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"pip install 'modcap\[export\]'"):
        require_onnx()
