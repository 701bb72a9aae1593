"""Networks that are unlike most: captured as they are, through all jobs and back from a file."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional as F

import modcap
from modcap.core.errors import InputError
from modcap.export.artifact import unpack_network
from modcap.graph.network import Network, build
from modcap.graph.nodes import WEIGHT_LAYERS, weight_layers
from tests.networks import exported

RECIPE = modcap.Recipe.preset(
    "quick",
    w_bits=4,
    a_bits=8,
    optimiser={"iterations": 2, "batch_size": 4},
    tuning=2,
    calibration=8,
    homogeneity="any",
)


class Body(nn.Module):
    """Two convolutions, ``between`` of them, and a head."""

    def __init__(self, channels: int = 8, **layers: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(channels, 8, 3)
        self.head = nn.Linear(8, 5)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.between(self.first(x)).relu()).relu()
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class LayerScale(Body):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(8, 1, 1)), nn.Parameter(torch.rand(8))

    def between(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift.view(1, -1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale.sum()


class ClassToken(nn.Module):
    """Tokens behind a class token, mixed by attention of one head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.token, self.place = nn.Parameter(torch.rand(1, 1, 8)), nn.Parameter(torch.rand(5, 8))
        self.q, self.k, self.v, self.head = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.size(0), -1, -1), tokens], 1) + self.place
        y = self.norm(tokens)
        share = (self.q(y) @ self.k(y).transpose(1, 2)).softmax(2)
        logits: Tensor = self.head((tokens + share @ self.v(y))[:, 0])
        return logits


class RelativePlaces(nn.Module):
    """Parameters that are no weights: places looked up by a product with what is fixed and added
    within attention, and a scale in front of a mean. A layer reads what is fixed, too."""

    lookup: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.qkv = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24, bias=False)
        self.places, self.scale = nn.Parameter(torch.rand(4, 4)), nn.Parameter(torch.rand(1, 1, 8))
        self.register_buffer("lookup", torch.rand(4, 4))
        self.mix, self.head = nn.Linear(4, 4), nn.Linear(8, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.patches(x).flatten(2).transpose(1, 2)).chunk(3, -1)
        places = torch.einsum("ij,jk->ik", self.places, self.lookup) + self.mix(self.lookup)
        y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], places)[:, 0]
        logits: Tensor = self.head((y * self.scale).mean(1))
        return logits


class Halves(Body):
    def between(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([b, a], 1)


class Patches(Body):
    """In the middle, the batch holds four pieces of each image."""

    def between(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        pieces = x.reshape(n, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 1, 3, 5)
        pieces = self.inner(pieces.reshape(4 * n, c, h // 2, w // 2))
        return pieces.reshape(n, 4 * c, h // 2, w // 2)


class Keywords(Body):
    def between(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(input=x)
        return torch.cat(tensors=[y], dim=1)


class TokenNorm(nn.Module):
    """A batch norm over as many tokens as the layer before it has outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(3, 4, 3, 3), nn.Linear(16, 4)
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.mix(self.conv(x).flatten(2))).flatten(1))
        return logits


class ThroughAView(Body):
    def between(self, x: Tensor) -> Tensor:
        x.view(x.size(0), -1).mul_(3.0)
        return x


def shared_activation() -> nn.Module:
    shared = nn.PReLU()
    layers = [nn.Conv2d(3, 8, 3), shared, nn.Conv2d(8, 8, 3), shared]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def vector_norm() -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8)]
    return nn.Sequential(*layers, nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "layer scale": LayerScale,
    "class token": ClassToken,
    "relative places": RelativePlaces,
    "halves": Halves,
    "patches": lambda: Patches(32, inner=nn.Conv2d(8, 8, 3, padding=1)),
    "transposed": lambda: Patches(32, inner=nn.ConvTranspose2d(8, 8, 3, padding=1)),
    "keywords": lambda: Keywords(norm=nn.BatchNorm2d(8)),
    "token norm": TokenNorm,
    "shared activation": shared_activation,
    "vector norm": vector_norm,
    "in place through a view": ThroughAView,
}


def trained(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model


def archived(model: nn.Module, images: Tensor, form: str) -> ExportedProgram:
    """What is read of the file that torch.export writes."""
    file, program = io.BytesIO(), exported(model, images)
    if form == "core aten":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = program.run_decompositions()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


def size(name: str) -> int:
    return 8 if name in ("class token", "relative places") else 12


@pytest.mark.parametrize("form", ["module", "pt2", "core aten"])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_same_function_and_can_be_quantized(name: str, form: str) -> None:
    model = trained(NETWORKS[name])
    layers = sum(isinstance(layer, WEIGHT_LAYERS) for layer in model.modules())
    images = torch.randn(8, 3, size(name), size(name))
    source = model if form == "module" else archived(model, images[:2], form)
    network = build(source, images[:2])
    again = Network.from_bytes(network.to_bytes())
    with torch.no_grad():
        expected = model(images)
        for found in (network, again):
            assert sum(len(weight_layers(part)) for part in found.partition.modules) == layers
            assert torch.allclose(found(images), expected, atol=1e-4)
    done = modcap.quantize(network, images, RECIPE)
    with torch.no_grad():
        logits = done.network(images)
    assert torch.equal(unpack_network(done.artifact)(images), logits)
    assert (logits - expected).norm() / expected.norm() < 0.5


class Random(Body):
    def between(self, x: Tensor) -> Tensor:
        return x + torch.rand(1)


class Autocast(Body):
    def between(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y: Tensor = self.inner(x)
        return (y.float() * 50).sin()


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "random numbers": (Random, r"draws random numbers \(rand\)"),
    "autocast": (
        lambda: Autocast(inner=nn.Conv2d(8, 8, 3)),
        "computes in bfloat16 inside: take autocast",
    ),
    "transposed in groups": (
        lambda: Keywords(norm=nn.ConvTranspose2d(8, 8, 3, groups=2)),
        "'norm' is a transposed convolution in groups",
    ),
}


class Unused(nn.Module):
    """Takes an image and something else, which it reads in dead code alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()

    def forward(self, x: Tensor, other: Any = None) -> Tensor:
        if other is not None:
            other + 1
        logits: Tensor = self.body(x)
        return logits


class ChangesItsInput(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5).relu_())


@pytest.mark.parametrize("make", [Unused, ChangesItsInput])
def test_a_model_is_compared_on_images_of_its_own(make: Callable[[], nn.Module]) -> None:
    model, images = trained(make), torch.randn(2, 3, 12, 12)
    before = images.clone()
    network = build(model, images)
    assert torch.equal(images, before)
    with torch.no_grad():
        assert torch.allclose(network(images), model(images.clone()), atol=1e-5)


def test_an_archive_of_one_batch_size_is_compared_too() -> None:
    model, images = trained(Body), torch.randn(8, 3, 12, 12)
    program = torch.export.export(model, (images,))
    network = build(program, images[:2])
    with torch.no_grad():
        assert torch.allclose(network(images[:3]), model(images[:3]), atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_as_it_is_is_refused(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason):
        build(trained(make), torch.randn(2, 3, 12, 12))
