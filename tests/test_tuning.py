"""Tuning brings the logits closer, and changes neither integers nor zero points."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from modcap.graph.forward import run_batched
from modcap.ptq.finetune import tune
from modcap.ptq.relative_error import relative_error
from modcap.ptq.rounding import StraightThroughRounding
from modcap.quantization.insert import quantizers, state_of
from modcap.quantization.layers import QuantLayer
from tests.networks import convolutions, rounded


def images() -> Tensor:
    return torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(2))


def test_the_error_falls_and_integers_stay() -> None:
    x = images()
    floats, modules = rounded(convolutions(bias=True), x)
    states = [{n: t.clone() for n, t in state_of(module)} for module in modules]
    curve, before, after = tune(floats, modules, x, run_batched(floats, x), 40, 1e-2, 0.0, 16, 0)
    assert after < 0.7 * before
    assert after == relative_error(run_batched(modules, x), run_batched(floats, x))
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


def test_integers_learn_too_where_they_may() -> None:
    x = images()
    errors, moved = [], []
    for rate in (0.0, 1e-2):
        floats, modules = rounded(convolutions(bias=True), x)
        before = [t.clone() for m in modules for n, t in state_of(m) if n.endswith("integers")]
        errors.append(tune(floats, modules, x, run_batched(floats, x), 200, 1e-2, rate, 16, 0)[2])
        after = [t for m in modules for n, t in state_of(m) if n.endswith("integers")]
        moved.append(sum(int((a != b).sum()) for a, b in zip(after, before, strict=True)))
    assert errors[1] < errors[0]
    assert moved[0] == 0 < moved[1]


def test_a_freed_layer_starts_from_its_integers() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    weight = conv.weight.detach().clone()
    layer = QuantLayer(conv, 2)
    layer.calibrate(2.4)
    layer.freeze()
    assert layer.integers is not None
    chosen = (layer.integers.float() + torch.randint(-1, 2, weight.shape)).clamp(0, 3)
    layer.restore(chosen.to(torch.uint8), layer.scale, layer.zero_point, None)
    x = torch.randn(2, 3, 5, 5)
    hard = layer(x)
    layer.learned_integers = StraightThroughRounding().start(layer, weight)
    latent = layer.learned_integers.variable
    assert torch.equal(torch.round(latent.detach()).clamp(0, 3), chosen)
    torch.testing.assert_close(layer(x), hard)
    exact = weight / layer.scale.reshape(-1, 1, 1, 1) + layer.zero_point.reshape(-1, 1, 1, 1)
    near = (exact - chosen).abs() < 0.49
    torch.testing.assert_close(latent.detach()[near], exact[near])
    latent.data += 0.6  # to the next integer, where there is one
    layer.freeze()
    assert (layer.integers.float() >= chosen).all()
    assert layer.integers.max() <= 3
    assert not torch.equal(layer.integers.float(), chosen)


def test_equal_seeds_give_equal_states() -> None:
    x = images()
    found = []
    for seed in (0, 0, 1):
        floats, modules = rounded(convolutions(bias=True), x)
        tune(floats, modules, x, run_batched(floats, x), 5, 1e-2, 1e-2, 16, seed)
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
    layer.freeze()
    integers = layer.integers
    layer.learn_scales()
    layer.learn_bias()
    assert layer.log_scale_offset is not None
    assert layer.bias is not None
    state = {
        "log_scale_offset": torch.tensor([0.1, -0.2, 0.0, 0.3], requires_grad=True),
        "bias": torch.randn(4, requires_grad=True),
    }
    x = torch.randn(2, 3, 5, 5)
    loose = functional_call(layer, state, (x,))
    loose.sum().backward()
    assert all(tensor.grad is not None for tensor in state.values())
    layer.log_scale_offset.data, layer.bias.data = (tensor.detach() for tensor in state.values())
    layer.freeze()
    torch.testing.assert_close(layer(x), loose.detach())
    assert integers is not None
    assert torch.equal(layer.integers, integers)
    assert quantizers(nn.Sequential(layer))[0]["0"].log_scale_offset is None


def test_what_gets_no_better_stays_as_it_was() -> None:
    x = images()
    floats, modules = rounded(convolutions(bias=True), x)
    states = [{n: t.clone() for n, t in state_of(module)} for module in modules]
    near = run_batched(modules, x) + 1e-3 * torch.randn(len(x), 5)
    _, before, after = tune(floats, modules, x, near, 3, 0.3, 1e-2, 16, 0)
    assert after == before == relative_error(run_batched(modules, x), near)
    assert tune(floats, modules, x, near * torch.nan, 3, 0.3, 1e-2, 16, 0)[0].shape == (0, 2)
    assert relative_error(run_batched(modules, x), near) == before
    for state, module in zip(states, modules, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in state_of(module))
