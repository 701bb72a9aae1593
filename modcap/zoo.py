"""Small networks for 28 × 28 single-channel images: the architectures of the shipped checkpoints.

Each factory takes no required argument and returns an ``nn.Module`` with random weights that maps
images of shape (N, 1, 28, 28) to logits of shape (N, 10). Name one on the command line as
``--arch modcap.zoo:mobilenet_v2_x0_5``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from modcap.checkpoints import _torchvision
from modcap.data.preprocess import Preprocess

__all__ = ["PREPROCESS", "mobilenet_v2_x0_5", "regnet_tiny", "resnet18_narrow", "vgg_tiny"]

PREPROCESS = Preprocess(mean=(0.2860,), std=(0.3530,))
"""What the shipped checkpoints were trained with, on Fashion-MNIST."""


def mobilenet_v2_x0_5(num_classes: int = 10) -> nn.Module:
    """MobileNetV2 at width 0.5 (arXiv 1801.04381), with a stem of stride 1 for small images."""
    models = _torchvision.models()
    net: Any = models.MobileNetV2(num_classes=num_classes, width_mult=0.5)
    stem: nn.Conv2d = net.features[0][0]
    net.features[0][0] = nn.Conv2d(1, stem.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(net.features[0][0].weight, mode="fan_out")
    network: nn.Module = net
    return network


class _BasicBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut (arXiv 1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet18_narrow(num_classes: int = 10, width: int = 16) -> nn.Module:
    """The four stages of two basic blocks of ResNet-18, a quarter as wide, with a 3 × 3 stem."""
    stages: list[nn.Module] = []
    inputs = width
    for stage in range(4):
        outputs = width * 2**stage
        for block in range(2):
            stages.append(_BasicBlock(inputs, outputs, 2 if stage and not block else 1))
            inputs = outputs
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        *stages,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(inputs, num_classes),
    )


class _GroupedBottleneck(nn.Module):
    """The X block of RegNet (arXiv 2003.13678): 1 × 1, grouped 3 × 3, 1 × 1, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, group_width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, stride, 1, groups=outputs // group_width, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


def regnet_tiny(num_classes: int = 10) -> nn.Module:
    """A RegNetX of widths 24, 48, 96, 192 and depths 1, 2, 4, 2 with groups of 8 channels."""
    blocks: list[nn.Module] = []
    inputs = 16
    for outputs, depth in ((24, 1), (48, 2), (96, 4), (192, 2)):
        for index in range(depth):
            stride = 2 if index == 0 and outputs > 24 else 1
            blocks.append(_GroupedBottleneck(inputs, outputs, stride, group_width=8))
            inputs = outputs
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(inputs, num_classes),
    )


def vgg_tiny(num_classes: int = 10) -> nn.Module:
    """A VGG with batch normalisation (arXiv 1409.1556): seven convolutions, no shortcut."""
    layers: list[nn.Module] = []
    inputs = 1
    for outputs, depth in ((24, 2), (48, 2), (96, 3)):
        for _ in range(depth):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)
    )
