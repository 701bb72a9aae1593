"""Capture and partition: any network, from a factory or an archive, without names."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from modcap import checkpoint
from modcap.capture import capture
from modcap.errors import InputError
from modcap.fold import fold_batch_norms
from modcap.network import build
from modcap.partition import WEIGHT_LAYERS, Partition, partition, weight_layers
from tests.networks import MODULES, make

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def cut(model: nn.Module | torch.export.ExportedProgram, images: Tensor) -> Partition:
    return partition(fold_batch_norms(capture(model, images)))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


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
    model, images = make(name)
    file = tmp_path / "model.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim.AUTO},)
        torch.export.save(torch.export.export(model, (images,), dynamic_shapes=shapes), file)
    loaded = checkpoint.load(file)
    found = cut(loaded.model, images)
    assert relative(found(images), model(images)) < 1e-5
    assert relative(found(images[:2]), model(images[:2])) < 1e-5
    assert found.names == cut(model, images).names


def conv(inputs: int = 3, outputs: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


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


@pytest.mark.parametrize("body", [InPlace, PreActivation, ControlFlow, Functional])
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
        self.stages = nn.ModuleList([make_block() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return x


class Chain(nn.Module):
    """A block without shortcut: it has cut points inside, and stays one module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(), conv()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x))))


def make_block() -> nn.Module:
    return Chain()


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


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim.AUTO},)
        return torch.export.export(model, (IMAGES,), dynamic_shapes=shapes)


class Sizes(nn.Module):
    """Reads sizes in one of many ways, in front of its stem or behind it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.stem = conv()
        self.stages = nn.ModuleList([make_block() for _ in range(2)])
        self.last = nn.Linear(768, 5)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x) if "behind" in self.way else None
        n, size = _read(x if stem is None else stem, self.way)
        y = self.stem(x) if stem is None else stem
        for stage in self.stages:
            y = stage(y)
        return self.last(y.reshape(n, size) if size else y.reshape(n, -1))


def _read(x: Tensor, way: str) -> tuple[int, int]:
    if "shape" in way:
        return x.shape[0], 0
    if "unpacked" in way:
        n, c, h, w = x.shape
        return n, c * h * w
    if "keyword" in way:
        return x.size(dim=0), 0
    return (x.size()[0] if "whole" in way else x.size(0)), 0


@pytest.mark.parametrize("behind", ["", " behind"])
@pytest.mark.parametrize("way", ["size", "whole size", "shape", "unpacked", "keyword"])
@pytest.mark.parametrize("archive", [False, True])
def test_a_size_that_is_read_early_joins_no_modules(way: str, behind: str, archive: bool) -> None:
    model = Sizes(way + behind).eval()
    found = cut(exported(model) if archive else model, IMAGES)
    assert found.names == ("stem", "stages.0", "stages.1", "last")
    with torch.no_grad():
        for count in (1, 2):
            assert relative(found(IMAGES[:count]), model(IMAGES[:count])) < 1e-5


class Scaled(nn.Module):
    """Computes with a number that is the same for every batch of these images, yet is no size."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).mean((2, 3)) * x.max().item()


@torch.no_grad()
def test_a_number_that_is_read_off_the_data_stays_so() -> None:
    model = Scaled().eval()
    graph = capture(model, IMAGES)
    assert relative(graph(IMAGES * 3), model(IMAGES * 3)) < 1e-6


class Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.last = conv(), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.adaptive_avg_pool2d(self.a(x), 1).squeeze())


@torch.no_grad()
def test_a_squeeze_keeps_the_row_of_a_single_image() -> None:
    model = Squeezed().eval()
    for source in (model, exported(model)):
        graph = capture(source, IMAGES)
        assert relative(graph(IMAGES[:1])[0], model(IMAGES)[0]) < 1e-5


class Counted(nn.Module):
    """Computes with the number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).mean((2, 3)) * (1 + x.shape[0] // 8 + x.shape[0] % 3)


@torch.no_grad()
def test_a_number_that_depends_on_the_batch_is_no_constant() -> None:
    model = Counted().eval()
    graph = capture(model, IMAGES)
    for images in (IMAGES, IMAGES[:1], IMAGES.repeat(6, 1, 1, 1)):
        assert relative(graph(images), model(images)) < 1e-6


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


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.a(x)).mean((2, 3))


class Dynamic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(), nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.a(x).mean((2, 3)), self.b * 2)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.a(x), "other": x}


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
    for source in (model, exported(model)):
        assert len(weight_layers(capture(source, IMAGES))) == 1


class Upsampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ConvTranspose2d(3, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x, output_size=(34, 34)).mean((2, 3))


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
        (conv(), "give a classifier"),
        (Head(conv()).double(), "'body.weight' of the model is float64"),
        (Product(), "'b' is multiplied at node 'matmul' without a layer"),
        (Product(transposed=True), "'b' is multiplied at node 'matmul' without a layer"),
        (Upsampled(), "layer 'a' is called with more than its input"),
        (normed(), "layer '2' has no running statistics"),
        (scripted(), "give the nn.Module that it was made from"),
        (Shared(), "layer 'a' is called twice"),
        (Dynamic(), "its weight is computed at run time"),
        (Two(), "returns a dict"),
        (OverData(), "free of control flow over data"),
        (nn.Sequential(nn.ReLU(), nn.Flatten()), "no convolution and no linear layer"),
    ],
)
def test_what_cannot_be_quantized_is_named_in_one_line(model: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(model.eval(), IMAGES)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_folding_equals_the_original_and_leaves_no_foldable_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        conv(), nn.BatchNorm2d(3), nn.ReLU(), nn.ConvTranspose2d(3, 4, 2, bias=False),
        nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(4 * 289, 6),
        nn.BatchNorm1d(6),
    ).eval()  # fmt: skip
    for module in model:
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    graph = fold_batch_norms(capture(model, IMAGES))
    assert relative(graph(IMAGES), model(IMAGES)) < 1e-5
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in graph.modules())


def test_norm_in_front_of_a_convolution_stays() -> None:
    model = nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(3), conv(), nn.Flatten()).eval()
    graph = fold_batch_norms(capture(model, IMAGES))
    assert isinstance(graph, fx.GraphModule)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in graph.modules()) == 1
