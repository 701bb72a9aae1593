"""Networks that every part of the method is tried on; random weights, small images."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from modcap import zoo
from modcap.checkpoints import _torchvision
from modcap.graph.capture import capture
from modcap.graph.fold_batch_norm import fold_batch_norms
from modcap.graph.forward import run_batched
from modcap.graph.network import build
from modcap.graph.partition import Partition, partition
from modcap.ptq.bit_policy import BitPolicy
from modcap.ptq.reconstruct import calibrate, freeze
from modcap.quantization.insert import insert_quantizers

TORCHVISION = [
    "resnet18",
    "resnet50",
    "regnet_x_400mf",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "mnasnet0_5",
    "shufflenet_v2_x0_5",
    "vgg11_bn",
    "squeezenet1_1",
    "densenet121",
    "googlenet",
]
ZOO: dict[str, Callable[[], nn.Module]] = {
    "zoo_mobilenet": zoo.mobilenet_v2_x0_5,
    "zoo_resnet": zoo.resnet18_narrow,
    "zoo_regnet": zoo.regnet_tiny,
    "zoo_vgg": zoo.vgg_tiny,
}
MODULES = {  # the blocks of each architecture, and the layers outside them
    "resnet18": 10,
    "resnet50": 18,
    "regnet_x_400mf": 24,
    "mobilenet_v2": 20,
    "mobilenet_v3_small": 15,
    "efficientnet_b0": 19,
    "mnasnet0_5": 21,
    "shufflenet_v2_x0_5": 19,
    "vgg11_bn": 11,
    "squeezenet1_1": 10,
    "densenet121": 9,
    "googlenet": 13,
    "zoo_mobilenet": 20,
    "zoo_resnet": 10,
    "zoo_regnet": 11,
    "zoo_vgg": 8,
}


def make(name: str) -> tuple[nn.Module, Tensor]:
    """The network in eval mode, its batch norms as if trained, and three images for it."""
    torch.manual_seed(0)
    if name in ZOO:
        model, images = ZOO[name](), torch.randn(3, 1, 28, 28)
    else:
        options: dict[str, Any] = {"init_weights": False} if name == "googlenet" else {}
        if name == "vgg11_bn":  # its 119 million head weights tell nothing here
            options = {"init_weights": False}
        model = getattr(_torchvision.models(), name)(**options)
        images = torch.randn(3, 3, 64, 64)
    return as_trained(model), images


def make_short(name: str) -> tuple[nn.Module, Tensor]:
    """Like :func:`make`, with each kind of block that the network has, and few of each kind."""
    torch.manual_seed(0)
    models = _torchvision.models()
    if name == "resnet18":
        model = models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)
    elif name == "shufflenet_v2_x0_5":
        model = models.ShuffleNetV2([2, 2, 2], [24, 16, 32, 64, 64], num_classes=5)
    elif name == "mobilenet_v3_small":
        blocks, _ = models.mobilenetv3._mobilenet_v3_conf(name)
        model = models.MobileNetV3(blocks[:5], last_channel=64, num_classes=5)
    else:
        return make(name)
    return as_trained(model), torch.randn(3, 3, 64, 64)


def as_trained(model: nn.Module) -> nn.Module:
    """In eval mode, with batch norms that do something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def convolutions(bias: bool) -> nn.Module:
    """Three convolutions and a classifier, for images (N, 3, H, W)."""
    torch.manual_seed(1)
    layers = [
        nn.Sequential(nn.Conv2d(3 if not i else 8, 8, 3, bias=bias), nn.ReLU()) for i in range(3)
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def rounded(model: nn.Module, x: Tensor) -> tuple[Any, list[Any]]:
    """The modules of ``model``, and the same rounded to nearest at W2A4."""
    partition = build(model.eval(), x[:2]).partition
    modules = []
    full = x
    for module, bits in zip(partition.modules, BitPolicy(2, 4, 8).resolve(partition), strict=True):
        modules.append(insert_quantizers(module, bits))
        calibrate(modules[-1:], full, 2.4)
        freeze(modules[-1:])
        full = run_batched([module], full)
    return partition.modules, modules


IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def cut(model: nn.Module | ExportedProgram, images: Tensor) -> Partition:
    return partition(fold_batch_norms(capture(model, images)))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def conv(inputs: int = 3, outputs: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Chain(nn.Module):
    """A block without shortcut: it has cut points inside, and stays one module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(), conv()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x))))


class Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.last = conv(), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.adaptive_avg_pool2d(self.a(x), 1).squeeze())


def exported(model: nn.Module, images: Tensor) -> ExportedProgram:
    """What torch.export makes of ``model``, for any number of images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = ({0: Dim.AUTO},)
        return torch.export.export(model, (images,), dynamic_shapes=batch)
