"""What ``modcap evaluate`` is given is what it measures, or one line says for what it was made."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modcap.core.errors import InputError
from modcap.flows.registry.accuracy import evaluate_artifact

GRAY = "mean=0.5,std=0.25"


class Small(nn.Module):
    """For any size of images; ``batch`` is written into its graph."""

    def __init__(self, batch: int = 0, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
        self.head, self.batch = nn.Linear(4, classes), batch

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        x = x.reshape(self.batch, 4, -1).mean(2) if self.batch else x.mean((2, 3))
        logits: Tensor = self.head(x)
        return logits


class ChannelsLast(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2))


def images(folder: Path) -> str:
    pixels = np.random.RandomState(0).randint(0, 256, (20, 1, 8, 8)).astype(np.uint8)
    np.savez(folder / "d.npz", images=pixels, labels=np.arange(20) % 3)
    return str(folder / "d.npz")


def pt2(model: nn.Module, file: Path, shape: tuple[int, ...], free: bool = True) -> str:
    shapes: Any = ({0: torch.export.Dim("batch")},) if free else None
    program = torch.export.export(model, (torch.randn(*shape),), dynamic_shapes=shapes)
    torch.export.save(program, file.with_suffix(".pt2"))
    return str(file.with_suffix(".pt2"))


def onnx(model: nn.Module, file: Path, shape: tuple[int, ...], free: bool = True) -> str:
    name, axes = str(file.with_suffix(".onnx")), {"images": {0: "batch"}} if free else {}
    x = torch.randn(*shape, dtype=next(model.parameters()).dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no other package is an old one
        torch.onnx.export(
            model, (x,), name, input_names=["images"], dynamic_axes=axes, dynamo=False
        )
    return name


FILES: dict[str, tuple[Callable[[Path], str], str]] = {
    "one image": (
        lambda f: pt2(Small(1).eval(), f, (1, 1, 8, 8), free=False),
        r"for 1 images at a time, and not for 2 .*dynamic_shapes",
    ),
    "two images": (
        lambda f: pt2(Small(2).eval(), f, (2, 1, 8, 8), free=False),
        r"for 2 images at a time, and not for 1 .*dynamic_shapes",
    ),
    "training": (lambda f: pt2(Small().train(), f, (2, 1, 8, 8)), r"training mode .*model\.eval"),
    "size": (lambda f: pt2(Small().eval(), f, (2, 1, 9, 9)), "images of 1 × 9 × 9 .* are 1 × 8"),
    "channels last": (lambda f: pt2(ChannelsLast().eval(), f, (2, 8, 8, 1)), "channels last"),
    "ONNX, one image": (
        lambda f: onnx(Small().eval(), f, (1, 1, 8, 8), free=False),
        "takes 1 images at a time: export it for any",
    ),
    "ONNX, size": (lambda f: onnx(Small().eval(), f, (2, 1, 9, 9)), "images of 1 × 9 × 9"),
    "ONNX, channels last": (
        lambda f: onnx(ChannelsLast().eval(), f, (2, 8, 8, 1)),
        "with channels last",
    ),
    "ONNX, half": (
        lambda f: onnx(Small().eval().half(), f, (2, 1, 8, 8)),
        r"takes tensor\(float16\): export it in float32",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_for_something_else_says_for_what(name: str, tmp_path: Path) -> None:
    make, message = FILES[name]
    with pytest.raises(InputError, match=message) as caught:
        evaluate_artifact(make(tmp_path / "m"), images(tmp_path), GRAY, None)
    assert "\n" not in str(caught.value)


def test_one_batch_that_takes_any_is_measured(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = Small().eval(), images(tmp_path)
    fixed = evaluate_artifact(pt2(model, tmp_path / "a", (4, 1, 8, 8), False), data, GRAY, None)
    free = evaluate_artifact(onnx(model, tmp_path / "b", (2, 1, 8, 8)), data, GRAY, None)
    assert fixed["top1"] == free["top1"]


def test_full_precision_of_an_archive(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = images(tmp_path)
    file = pt2(Small().eval(), tmp_path / "a", (2, 1, 8, 8))
    other = pt2(Small(classes=4).eval(), tmp_path / "b", (2, 1, 8, 8))
    found = evaluate_artifact(file, data, GRAY, None, None, file)
    assert (found["agreement"], found["fp_top1"]) == (100, found["top1"])
    with pytest.raises(InputError, match="tells 4 classes, and what is measured 3"):
        evaluate_artifact(file, data, GRAY, None, None, other)
