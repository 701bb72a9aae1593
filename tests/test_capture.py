"""Capture and partition: any network, from a factory or an archive, without names."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modcap.checkpoints import checkpoint
from modcap.core.errors import InputError
from modcap.graph.capture import capture
from modcap.graph.network import build
from modcap.graph.nodes import WEIGHT_LAYERS, weight_layers
from tests.networks import (
    IMAGES,
    MODULES,
    Chain,
    Squeezed,
    conv,
    cut,
    exported,
    make,
    make_short,
    relative,
)


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_partition_equals_the_original(name: str) -> None:
    model, images = make(name)
    before = copy.deepcopy(model.state_dict())
    found = cut(model, images)
    assert relative(found(images), model(images)) < 1e-5
    assert relative(found(images[:1]), model(images[:1])) < 1e-5
    assert len(found.modules) == MODULES[name]
    assert len(set(found.names)) == len(found.names)
    for module in found.modules:
        assert weight_layers(module)
        assert [n.op for n in module.graph.nodes].count("placeholder") == 1
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "zoo_regnet", "resnet18"]
)
@torch.no_grad()
def test_archive_is_partitioned_like_the_factory(name: str, tmp_path: Path) -> None:
    model, images = make_short(name)
    file = tmp_path / "model.pt2"
    torch.export.save(exported(model, images), file)
    loaded = checkpoint.load(file)
    found = cut(loaded.model, images)
    assert relative(found(images), model(images)) < 1e-5
    assert relative(found(images[:2]), model(images[:2])) < 1e-5
    assert found.names == cut(model, images).names


class Head(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.last = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x).mean((2, 3)))


class InPlace(nn.Module):
    """Adds in place to what a later layer reads, in three ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(), conv(), conv()

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y += x
        y.add_(1.0)
        z = F.relu(self.b(y), inplace=True)
        F.relu_(y)
        return self.c(z) + y


class ControlFlow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == 3 and x.dim() == 4:
            x = self.a(x)
        for _ in range(int(x.shape[2]) // 8):
            x = torch.relu(x)
        return x


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, None, stride=2, padding=1)


class Convolutions(nn.Module):
    """Functional ones that have no layer of their own name, or seldom do."""

    def __init__(self) -> None:
        super().__init__()
        shapes = (3, 3, 3, 3), (3, 3, 2, 2), (3, 3, 3)
        self.a, self.b, self.c = (nn.Parameter(torch.randn(shape)) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.convolution(x, self.a, None, [2, 1], [1, 0], [1, 1], False, [0, 0], 1)
        x = torch.convolution(x, self.b, None, [2, 2], [1, 0], [1, 1], True, [1, 0], 1)
        return F.conv_transpose1d(x.flatten(2), self.c, stride=2)[..., None]


class PreActivation(nn.Module):
    """A layer works in place on what the shortcut reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = conv(), conv(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return F.leaky_relu_(self.b(self.act(y)) + y)


class Default(nn.Module):
    """Whether an argument was given decides, and it is used, or not."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv()

    def forward(self, x: Tensor, mask: Tensor | None = None, flag: str | None = None) -> Tensor:
        if mask is not None:
            x = x * mask
        if flag is not None:
            x = x * 2
        return self.a(x).mean((2, 3))


@pytest.mark.parametrize("body", [InPlace, PreActivation, ControlFlow, Functional, Convolutions])
@torch.no_grad()
def test_unusual_code_is_captured(body: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = Head(body()).eval()
    expected = model(IMAGES.clone())
    graph = capture(model, IMAGES)
    kept = IMAGES.clone()
    assert relative(graph(kept), expected) < 1e-6
    assert torch.equal(kept, IMAGES)
    assert all(
        isinstance(graph.get_submodule(str(node.target)), WEIGHT_LAYERS)
        for node in weight_layers(graph)
    )
    assert len(weight_layers(graph)) == sum(p.ndim > 1 for p in model.parameters())


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv()
        self.stages = nn.ModuleList([Chain() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return x


def test_wrapper_does_not_swallow_its_blocks() -> None:
    found = cut(Head(Backbone()).eval(), IMAGES)
    assert found.names == (
        "body.stem",
        "body.stages.0",
        "body.stages.1",
        "body.stages.2",
        "last",
    )


@torch.no_grad()
def test_an_argument_that_is_left_out_keeps_its_default() -> None:
    model = Default().eval()
    assert relative(capture(model, IMAGES)(IMAGES), model(IMAGES)) < 1e-6


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own imports
def test_wrappers_around_a_model_are_taken_off() -> None:
    model = Squeezed().eval()
    names = cut(model, IMAGES).names
    for wrapped in (torch.compile(model), nn.DataParallel(torch.compile(model))):
        assert cut(wrapped, IMAGES).names == names
    parts = OrderedDict(module=conv(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
    assert cut(
        nn.Sequential(
            parts,
        ).eval(),
        IMAGES,
    ).names == ("module",)


class Dynamic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(), nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).mean((2, 3))
        return F.linear(x, self.b * x.max())


class OverData(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if bool(x.sum() > 0) else x


class Product(nn.Module):
    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        self.a, self.transposed = conv(), transposed
        self.b = nn.Parameter(torch.randn((5, 3) if transposed else (3, 5)))

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).mean((2, 3)) @ (self.b.t() if self.transposed else self.b)


class Multiplied(nn.Module):
    """What ``product`` makes of features (N, 3) and a parameter (5, 3)."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.product = conv(), nn.Parameter(torch.randn(5, 3)), product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(self.a(x).mean((2, 3)), self.b)


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tensordot": lambda x, w: torch.tensordot(x, w.t(), 1),
    "inner": torch.inner,
    "chain": lambda x, w: torch.linalg.multi_dot([x, w.t(), w, w.t()]),
    "bilinear": lambda x, w: F.bilinear(x, x, w[:, None].expand(-1, 3, -1)),
    "masked": lambda x, w: x @ (w * torch.ones(5, 3)).t(),
    "batched": lambda x, w: torch.bmm(w.expand(x.size(0), -1, -1), x[:, :, None])[..., 0],
    "mv": lambda x, w: torch.stack([torch.mv(w, row) for row in x.sum(0, True)]) + x[:, :1],
    "sum": lambda x, w: (x[:, None] * w).sum(-1),
    "mean": lambda x, w: torch.mean(w * x[:, None], dim=2),
    "cosine": lambda x, w: F.cosine_similarity(x[:, None], w[None], dim=-1),
    "keys": lambda x, w: F.scaled_dot_product_attention(x[:, None], w[None], w[None])[:, 0],
}


@pytest.mark.parametrize("form", ["module", "pt2"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_parameter_is_not_multiplied_outside_of_layers(name: str, form: str) -> None:
    model = Multiplied(PRODUCTS[name]).eval()
    message = "'b' is multiplied at .* without a layer"
    if form == "pt2":
        message += ".* and export without run_decompositions"
    with pytest.raises(InputError, match=message) as caught:
        capture(model if form == "module" else exported(model, IMAGES), IMAGES)
    assert "\n" not in str(caught.value)


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(), nn.Bilinear(3, 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).mean((2, 3))
        return self.b(x, x)


class FixedProduct(nn.Module):
    """A fixed transform is no weight."""

    basis: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a = conv()
        self.register_buffer("basis", torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.a(torch.matmul(x, self.basis)).mean((2, 3))


def test_a_product_with_a_fixed_tensor_is_captured() -> None:
    model = FixedProduct().eval()
    for source in (model, exported(model, IMAGES)):
        assert len(weight_layers(capture(source, IMAGES))) == 1


class Upsampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ConvTranspose2d(3, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x, output_size=(34, 34)).mean((2, 3))


@torch.no_grad()
def test_a_layer_that_is_told_its_output_size_is_captured_by_export() -> None:
    model = Upsampled().eval()
    graph = capture(model, IMAGES)
    assert relative(graph(IMAGES), model(IMAGES)) < 1e-6
    assert len(weight_layers(graph)) == 1


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cast(nn.Module, torch.jit.script(conv()))


def normed() -> nn.Module:
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    return nn.Sequential(conv(), nn.ReLU(), norm, nn.Flatten())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Head(conv()).double(), "'body.weight' of the model is float64"),
        (Product(), "'b' is multiplied at node 'matmul' without a layer"),
        (Product(transposed=True), "'b' is multiplied at node 'matmul' without a layer"),
        (Bilinear(), "'b.weight' is multiplied at 'b' without a layer that can be quantized"),
        (normed(), "layer '2' has no running statistics"),
        (scripted(), "give the nn.Module that it was made from"),
        (Dynamic(), "its weight is computed at run time"),
        (OverData(), "free of control flow over data"),
        (nn.Sequential(nn.ReLU(), nn.Flatten()), "no convolution and no linear layer"),
    ],
)
def test_what_cannot_be_quantized_is_named_in_one_line(model: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(model.eval(), IMAGES, strict=True)
    assert "\n" not in str(caught.value)
