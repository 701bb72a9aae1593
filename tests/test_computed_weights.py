"""Weights that a model computes of parameters alone become weights of layers; and what else its
author may have done to it: hooks, names that are taken, a layer that is called twice."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import modcap
from modcap.core.errors import InputError, Notice
from modcap.export.artifact import unpack_network
from modcap.graph.network import Network, build
from modcap.graph.nodes import weight_layers
from modcap.quantization.bits import Bits
from modcap.quantization.insert import insert_quantizers, quantizers
from tests.test_unusual_networks import RECIPE, Body, trained

SIDE = 12


class Standardised(nn.Conv2d):
    """Each filter has mean 0 and variance 1, whatever was learned."""

    def forward(self, x: Tensor) -> Tensor:
        w = F.batch_norm(self.weight.reshape(1, len(self.weight), -1), None, None, training=True)
        return F.conv2d(x, w.reshape_as(self.weight), self.bias, self.stride, self.padding)


class Reparametrised(nn.Module):
    """A kernel that is the sum of two, the smaller one padded."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.large.weight + F.pad(self.small.weight, [1, 1, 1, 1])
        return F.conv2d(x, weight, self.large.bias + self.small.bias)


class Inner(Body):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner=inner)

    def between(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y


class Partial(Body):
    """A convolution over a part of the channels, written into the tensor (FasterNet)."""

    def __init__(self) -> None:
        super().__init__(part=nn.Conv2d(2, 2, 3, padding=1))

    def between(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :2] = self.part(x[:, :2])
        return x


class PartOfBias(Body):
    """A bias of which a part is nought (Swin V2)."""

    def between(self, x: Tensor) -> Tensor:
        bias = self.inner.bias.clone()
        bias[2:5].zero_()
        return F.conv2d(x, self.inner.weight, bias)


class Checked(Body):
    def between(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[2] == x.shape[3], "square")
        zeros = torch.zeros(1, 8, 1, 1) + torch.arange(8).reshape(1, 8, 1, 1)
        return F.hardsigmoid(x) + F.threshold(x, 0.1, 0.0) + F.logsigmoid(x) + zeros


class Extra(nn.Conv2d):
    def get_extra_state(self) -> Any:
        return {"version": 3}

    def set_extra_state(self, state: Any) -> None:
        assert state["version"] == 3


class Several(Body):
    def forward(self, *images: Tensor) -> Tensor:
        return super().forward(images[0])


class Named(nn.Module):
    """Layers under names that graphs, or modcap, have themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.input_quantizer_0 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.a, self.a_b = nn.ModuleDict({"b_c": nn.Conv2d(8, 8, 1)}), nn.ModuleDict()
        self.a_b["c"] = nn.Conv2d(8, 8, 1)
        self.graph = nn.Sequential(nn.Flatten(), nn.LazyLinear(5))
        self.add_module("class", nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        x = getattr(self, "class")(self.input_quantizer_0(self.code(x).relu()))
        logits: Tensor = self.graph(x + self.a["b_c"](x).relu() + self.a_b["c"](x).sigmoid())
        return logits


def named() -> nn.Module:
    model = Named()
    model(torch.zeros(1, 3, SIDE, SIDE))
    return model


def hooked() -> nn.Module:
    model = Inner(nn.Conv2d(8, 8, 3))
    model.inner.register_forward_hook(lambda _, __, y: y * 2)
    model.second.register_forward_pre_hook(lambda _, given: (given[0] + 1,))
    return model


def pruned() -> nn.Module:
    model = Inner(nn.Conv2d(8, 8, 3))
    prune.l1_unstructured(model.inner, "weight", amount=0.5)
    prune.random_unstructured(model.inner, "weight", amount=0.5)
    return model


def with_warnings_off(make: Callable[..., Any], *given: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*given)


def old_norm(kind: str) -> nn.Module:
    model = Inner(nn.Conv2d(8, 8, 3))
    with_warnings_off(getattr(nn.utils, kind), model.inner)
    model(torch.randn(2, 3, SIDE, SIDE))
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "standardised": lambda: Inner(Standardised(8, 8, 3)),
    "re-parametrised": lambda: Inner(Reparametrised()),
    "weight norm": lambda: Inner(parametrizations.weight_norm(nn.Conv2d(8, 8, 3))),
    "spectral norm": lambda: Inner(parametrizations.spectral_norm(nn.Conv2d(8, 8, 3))),
    "old weight norm": lambda: old_norm("weight_norm"),
    "old spectral norm": lambda: old_norm("spectral_norm"),
    "pruned": pruned,
    "partial": Partial,
    "part of a bias": lambda: PartOfBias(inner=nn.Conv2d(8, 8, 3)),
    "checked": Checked,
    "hooked": hooked,
    "extra state": lambda: Inner(Extra(8, 8, 3)),
    "several": Several,
    "named": named,
}
LAYERS = {"checked": 3, "several": 3, "named": 5}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_captured_quantized_and_packed(name: str) -> None:
    model, images = trained(MODELS[name]), torch.randn(8, 3, SIDE, SIDE)
    before = {k: v.clone() for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    network = build(model, images[:2], strict=True)
    with torch.no_grad():
        expected = model(images.clone())
        assert torch.allclose(network(images), expected, atol=1e-4)
    layers = [node for part in network.partition.modules for node in weight_layers(part)]
    assert len(layers) == LAYERS.get(name, 4)
    assert all(torch.equal(before[k], model.state_dict()[k]) for k in before)
    done = modcap.quantize(network, images, RECIPE)
    assert torch.equal(unpack_network(done.artifact)(images), done.network(images))
    again = Network.from_bytes(network.to_bytes())
    assert again.digest == network.digest


class Twice(nn.Module):
    """One convolution is called before and behind others, with statistics of its own each time."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.between = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.one, self.two, self.head = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.one(self.shared(x)).relu()).relu()
        logits: Tensor = self.head(self.two(self.shared(x)).relu().mean((2, 3)))
        return logits


@pytest.mark.parametrize("exported", [False, True])
def test_a_layer_that_is_called_twice_has_one_quantized_weight(exported: bool) -> None:
    model, images = trained(Twice), torch.randn(8, 3, SIDE, SIDE)
    source = torch.export.export(model, (images,)) if exported else model
    with torch.no_grad():
        expected = model(images)
        network = build(source, images[:2])
        assert torch.allclose(network(images), expected, atol=1e-5)
        (whole, *_) = network.partition.modules
        layers = [str(node.target) for node in weight_layers(whole)]
        assert len(layers) == 2
        quantized = insert_quantizers(whole, [Bits(4, 8)] * 2)
        assert len(quantizers(quantized)[0]) == 2
        assert len(quantizers(quantized)[1]) == 3  # in front of each call
    done = modcap.quantize(network, images, RECIPE)
    logits = done.network(images)
    assert torch.equal(unpack_network(done.artifact)(images), logits)
    assert (logits - expected).norm() / expected.norm() < 0.5


class Relative(Body):
    """Places that depend on the image: a table, multiplied with it (BoTNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, 8))

    def between(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,cd->ndhw", x, self.table)


def test_a_product_that_cannot_be_quantized_stays_float_and_is_named() -> None:
    model, images = trained(Relative), torch.randn(8, 3, SIDE, SIDE)
    with pytest.warns(Notice, match="'table' is multiplied at .*; it stays in floating point"):
        network = build(model, images[:2])
    assert len(network.notices) == 1
    with torch.no_grad():
        assert torch.allclose(network(images), model(images), atol=1e-4)
    done = modcap.quantize(network, images, RECIPE)
    assert torch.equal(unpack_network(done.artifact)(images), done.network(images))
    with pytest.raises(InputError, match="'table' is multiplied"):
        build(model, images[:2], strict=True)
