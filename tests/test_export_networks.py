"""Any network that quantizes exports to ONNX, and computes there what its artifact computes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from modcap.core.errors import InputError
from modcap.export import Export, save
from modcap.export.artifact import unpack_network
from modcap.quantization.scheme import USUAL, Activations, Scales, Scheme, WeightRange
from tests.exports import artifact_of, run_onnx
from tests.networks import exported

ODD = 7  # channels


def agrees(artifact: bytes, file: Path, shape: tuple[int, int, int], opset: int = 25) -> None:
    """Writes the file, which compares it piece by piece, and runs it on other numbers of images."""
    said = save(Export(artifact, opset), "onnx", file)
    assert said["largest_difference"] <= 0.2 * said["largest_logit"]
    network = unpack_network(artifact)
    for count in (1, 3):
        images = torch.randn(count, *shape)
        expected, found = network(images), run_onnx(file, images)
        assert found.shape == expected.shape
        assert (found - expected).norm() <= 0.2 * expected.norm()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(ODD, ODD, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.inner(x) + x)


class Concatenation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(ODD, 5, 3, padding=1), nn.Conv2d(ODD, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.narrow(x), self.wide(x)], 1)


class Excitation(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(ODD, 3, 1), nn.Conv2d(3, ODD, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))
        return x * self.gate(self.up(y))


class Tokens(nn.Module):
    """A layer norm, attention and a linear layer over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(ODD), nn.Linear(ODD, 12), nn.Linear(4, ODD)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        q, k, v = self.qkv(tokens).chunk(3, -1)
        y = F.gelu(self.out(F.scaled_dot_product_attention(q, k, v)))
        return x + y.transpose(1, 2).reshape(n, c, h, w)


def convolution(draw: Callable[[Any], Any]) -> nn.Module:
    groups = draw(st.sampled_from([1, ODD]))
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    dilation, stride = draw(st.sampled_from([(1, 1), (2, 1), (1, 2)]))
    bias, padding = draw(st.booleans()), draw(st.sampled_from([1, 2]))
    return nn.Conv2d(ODD, ODD, 3, stride, padding, dilation, groups, bias, padding_mode=mode)


def transposed(draw: Callable[[Any], Any]) -> nn.Module:
    stride = draw(st.sampled_from([1, 2]))
    return nn.ConvTranspose2d(ODD, ODD, 3, stride, 1, stride - 1, bias=draw(st.booleans()))


def average(draw: Callable[[Any], Any]) -> nn.Module:
    ceil, counted = draw(st.booleans()), draw(st.booleans())
    divisor = draw(st.sampled_from([None, 5]))
    return nn.AvgPool2d(3, draw(st.sampled_from([1, 2])), 1, ceil, counted, divisor)


def largest(draw: Callable[[Any], Any]) -> nn.Module:
    ceil = draw(st.booleans())
    return nn.MaxPool2d(draw(st.sampled_from([2, 3])), 2, padding=1, ceil_mode=ceil)


PIECES: list[Callable[[Callable[[Any], Any]], nn.Module]] = [
    *(convolution, convolution, transposed, average, largest),
    *(lambda _: Residual(), lambda _: Concatenation(), lambda _: Excitation(), lambda _: Tokens()),
    lambda draw: draw(st.sampled_from([nn.ReLU6, nn.Hardswish, nn.ELU, nn.PReLU, nn.Mish]))(),
    lambda _: nn.GroupNorm(1, ODD),
    lambda _: nn.Upsample(scale_factor=2, mode="nearest"),
]


@st.composite
def networks(draw: Callable[[Any], Any]) -> nn.Module:
    torch.manual_seed(draw(st.integers(0, 9)))
    pieces = [draw(st.sampled_from(PIECES))(draw) for _ in range(draw(st.integers(2, 5)))]
    pool = nn.AdaptiveAvgPool2d(draw(st.sampled_from([1, 2, 3])))
    head = [pool, nn.Flatten(), nn.LazyLinear(5, bias=draw(st.booleans()))]
    network = nn.Sequential(nn.Conv2d(3, ODD, 3, padding=1), *pieces, *head).eval()
    network(torch.zeros(1, 3, 11, 10))
    return network


def schemes() -> st.SearchStrategy[Scheme]:
    """What is quantized, and on which grids; every other one is the usual."""
    parts = (st.sampled_from(list(kind)) for kind in (Activations, WeightRange, Scales))
    names = ("activations", "weights", "scales")
    return st.just(USUAL) | st.builds(Scheme, **dict(zip(names, parts, strict=True)))


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # shrinking takes minutes
    suppress_health_check=list(HealthCheck),
)
@given(
    networks(), st.integers(2, 8), st.integers(2, 8), st.sampled_from([25, 25, 21, 13]), schemes()
)
def test_random_networks_agree(
    tmp_path_factory: pytest.TempPathFactory,
    model: nn.Module,
    w: int,
    a: int,
    opset: int,
    scheme: Scheme,
) -> None:
    torch.manual_seed(0)
    artifact = artifact_of(model, torch.randn(8, 3, 11, 10), w, a, scheme)
    agrees(artifact, tmp_path_factory.mktemp("export") / "n.onnx", (3, 11, 10), opset)


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(networks(), st.sampled_from([25, 21, 13]), st.sampled_from(list(Scales)))
def test_random_networks_agree_in_integer_kernels(
    tmp_path_factory: pytest.TempPathFactory, model: nn.Module, opset: int, scales: Scales
) -> None:
    torch.manual_seed(0)
    scheme = Scheme(activations=Activations.ALL, weights=WeightRange.SYMMETRIC, scales=scales)
    artifact = artifact_of(model, torch.randn(8, 3, 11, 10), 8, 8, scheme)
    agrees(artifact, tmp_path_factory.mktemp("export") / "n.onnx", (3, 11, 10), opset)


class Between(nn.Module):
    """Functions side by side between a convolution and the head."""

    def __init__(self, *functions: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.LazyLinear(5)
        self.functions = functions

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        logits: Tensor = self.head(torch.cat([f(y).flatten(1) for f in self.functions], 1))
        return logits


def between(*functions: Callable[[Tensor], Tensor]) -> nn.Module:
    model = Between(*functions).eval()
    model(torch.zeros(1, 3, 12, 12))
    return model


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "ceil divisor": lambda x: F.avg_pool2d(x, 3, 2, 1, True, True, 4),
    "uneven adaptive": lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
    "adaptive max": lambda x: F.adaptive_max_pool2d(x, 5),
    "wide circular": lambda x: F.pad(x, (1, 2, 0, 3), mode="circular"),
    "constant pad": lambda x: F.pad(x, (1, 0, -1, 2), value=0.5),
    "bilinear": lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"),
    "corners": lambda x: F.interpolate(x, size=(13, 7), mode="bilinear", align_corners=True),
    "shuffle": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2),
    "roll and flip": lambda x: x.roll((1, -2), (2, 3)).flip(3),
    "unit length": lambda x: F.normalize(x, dim=1),
    "variance": lambda x: x / (x.var(1, keepdim=True) + 1).sqrt(),
    "counts": lambda x: (x > 0).sum(1, keepdim=True) * x + (x > 0.1).sum() * 0.01,
    "softmax": lambda x: x.softmax(1) * x.log_softmax(2),
    "where": lambda x: torch.where(x > 0.1, x, 0.3 * x.clamp(-1)) - x.abs() ** 0.5,
    "gelu": lambda x: F.gelu(x, approximate="tanh") + F.softplus(x, 2) + F.leaky_relu(x, 0.1),
    "response": lambda x: F.local_response_norm(x, 3),
    "halves": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1) + torch.stack(x.unbind(1), 1),
    "einsum": lambda x: torch.einsum("nchw,ncij->nhwij", x, x).mean((3, 4))[:, None].expand_as(x),
    "places": lambda x: x + torch.arange(10).float().sin() + torch.linspace(0, 1, 10)[:, None],
    "instances": lambda x: x - x.mean((2, 3), keepdim=True) * x.amax(1, keepdim=True),
    "slices": lambda x: x[:, :, 1::2, :-1] * x[..., 2:3, 1:] + x[:, :, [3, 0, 1, 1, 2]][..., 1:],
    "select": lambda x: x[:, 2] - x[:, -1, :, 3, None].repeat(1, 1, 10),
    "product": lambda x: (x.flatten(2) @ x.flatten(2).transpose(1, 2)).softmax(2) @ x.flatten(2),
}


@pytest.mark.parametrize("group", range(4))
def test_every_function_between_layers_agrees(tmp_path: Path, group: int) -> None:
    torch.manual_seed(0)
    model = between(*list(FUNCTIONS.values())[group::4])
    artifact = artifact_of(model, torch.randn(4, 3, 12, 12), 4, 4)
    agrees(artifact, tmp_path / "n.onnx", (3, 12, 12), opset=13 if group % 2 else 25)


def test_an_archive_of_torch_export_agrees(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8, 8)
    first = nn.Conv2d(3, ODD, 3, padding=1)
    last = nn.AvgPool2d(2, divisor_override=3), nn.Flatten(), nn.Linear(ODD * 16, 5)
    model = nn.Sequential(first, Tokens(), Excitation(), Residual(), *last).eval()
    program = exported(model, images[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        core = program.run_decompositions()
    for source in (program, core):
        agrees(artifact_of(source, images, 3, 8), tmp_path / "n.onnx", (3, 8, 8))


def test_what_has_no_onnx_form_is_one_line_with_operator_and_place(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = between(lambda x: x.logcumsumexp(1))
    artifact = artifact_of(model, torch.randn(4, 3, 12, 12), 4, 4)
    with pytest.raises(InputError, match=r"aten\.\w+\.default at \w+ has no ONNX form") as refusal:
        save(Export(artifact), "onnx", tmp_path / "n.onnx")
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())
