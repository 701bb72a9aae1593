"""Tuning brings the logits closer, and changes neither integers nor zero points."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from modcap.quantized import QuantLayer, quantizers, state_of
from modcap.reconstruct import chain, relative_error
from modcap.tuning import tune
from tests.networks import convolutions, rounded


def images() -> Tensor:
    return torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(2))


def test_the_error_falls_and_integers_stay() -> None:
    x = images()
    floats, modules = rounded(convolutions(bias=True), x)
    states = [{n: t.clone() for n, t in state_of(module)} for module in modules]
    curve, before, after = tune(modules, x, chain(floats, x), 40, 1e-2, 16, 0)
    assert after < 0.7 * before
    assert after == relative_error(chain(modules, x), chain(floats, x))
    assert curve[0, 1] > curve[-1, 1]
    changed = set()
    for state, module in zip(states, modules, strict=True):
        for name, tensor in state_of(module):
            kept = torch.equal(tensor, state[name])
            what = name.rsplit(".", 1)[1]
            assert kept or what in ("scale", "bias"), name
            if not kept:
                changed.add("input" if name.startswith("input_quantizer") else what)
    assert changed == {"scale", "bias", "input"}


def test_equal_seeds_give_equal_states() -> None:
    x = images()
    found = []
    for seed in (0, 0, 1):
        floats, modules = rounded(convolutions(bias=True), x)
        tune(modules, x, chain(floats, x), 5, 1e-2, 16, seed)
        found.append([t for module in modules for _, t in state_of(module)])
    same, other = (
        all(torch.equal(a, b) for a, b in zip(found[0], states, strict=True))
        for states in found[1:]
    )
    assert same
    assert not other


def test_hardening_gives_what_the_loose_layer_computed() -> None:
    torch.manual_seed(0)
    layer = QuantLayer(nn.Conv2d(3, 4, 3), 3)
    layer.calibrate(2.4)
    layer.harden()
    integers = layer.integers
    layer.loosen()
    assert layer.stretch is not None
    assert layer.bias is not None
    state = {
        "stretch": torch.tensor([0.1, -0.2, 0.0, 0.3], requires_grad=True),
        "bias": torch.randn(4, requires_grad=True),
    }
    x = torch.randn(2, 3, 5, 5)
    loose = functional_call(layer, state, (x,))
    loose.sum().backward()
    assert all(tensor.grad is not None for tensor in state.values())
    layer.stretch.data, layer.bias.data = (tensor.detach() for tensor in state.values())
    layer.harden()
    torch.testing.assert_close(layer(x), loose.detach())
    assert integers is not None
    assert torch.equal(layer.integers, integers)
    assert quantizers(nn.Sequential(layer))[0]["0"].stretch is None
