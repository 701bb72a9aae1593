"""The two shipped architectures in torch alone, for environments that have neither modcap nor
torchvision. Names of tensors, and the hierarchy of blocks, are those of ``modcap.zoo``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["load"]

# expansion, channels, blocks, stride of each stage of MobileNetV2 (arXiv 1801.04381, table 2)
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


class _Add(nn.Module):
    """A sum as a module: some peers quantize only modules."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class _Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [_activated(inputs, hidden, 1)] if expansion > 1 else []
        layers.append(_activated(hidden, hidden, 3, stride, hidden))
        self.conv = nn.Sequential(*layers, _conv(hidden, outputs, 1), nn.BatchNorm2d(outputs))
        self.add = _Add() if stride == 1 and inputs == outputs else None

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if self.add is None else self.add(x, self.conv(x))


def _activated(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    convolution = _conv(inputs, outputs, size, stride, groups)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())


class _MobileNet(nn.Module):
    def __init__(self, width: float) -> None:
        super().__init__()
        inputs = _rounded(32 * width)
        features: list[nn.Module] = [_activated(1, inputs, 3)]
        for expansion, channels, blocks, stride in _STAGES:
            outputs = _rounded(channels * width)
            for block in range(blocks):
                features.append(_Inverted(inputs, outputs, 1 if block else stride, expansion))
                inputs = outputs
        features.append(_activated(inputs, 1280, 1))
        self.features = nn.Sequential(*features)
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 10))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.flatten(self.pool(self.features(x))))
        return logits


def _rounded(channels: float) -> int:
    """The nearest multiple of 8, never less than nine tenths."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


class _Basic(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.relu1, self.relu2, self.add = nn.ReLU(), nn.ReLU(), _Add()
        self.conv2, self.bn2 = _conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        out: Tensor = self.relu2(self.add(self.bn2(self.conv2(y)), self.shortcut(x)))
        return out


def _resnet(width: int) -> nn.Sequential:
    blocks: list[nn.Module] = []
    inputs = width
    for stage in range(4):
        outputs = width * 2**stage
        for block in range(2):
            blocks.append(_Basic(inputs, outputs, 2 if stage and not block else 1))
            inputs = outputs
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10)]
    return nn.Sequential(_conv(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), *blocks, *head)


def load(name: str, weights: Path) -> nn.Module:
    """The network ``name`` in eval mode with the tensors of ``weights`` (``torch.save``)."""
    network = _MobileNet(0.5) if name == "mobilenet_v2_x0_5" else _resnet(16)
    network.load_state_dict(torch.load(weights, weights_only=True))
    return network.eval()
