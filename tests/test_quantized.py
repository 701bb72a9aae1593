"""Attached modules: gradients, states, and that hardening and restoring agree bit for bit."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from modcap.ptq.reconstruct import calibrate, freeze
from modcap.ptq.rounding import SoftRounding
from modcap.quantization.affine import fake_quantize
from modcap.quantization.bits import Bits
from modcap.quantization.insert import insert_quantizers, quantizers, restore, state_of
from modcap.quantization.layers import ActivationQuantizer, QuantLayer, bernoulli_mask


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


@pytest.fixture
def module() -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(Residual().eval())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, 4, 5, 5, generator=torch.Generator().manual_seed(1))


def straight_through(x: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    """The same quantizer from autograd's own operations, with rounding as the identity."""
    ratio = x / scale
    rounded = ratio + (torch.round(ratio) - ratio).detach()
    return (torch.clamp(rounded + zero, 0, top) - zero) * scale


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_gradients_equal_those_of_the_composed_quantizer(keep: float) -> None:
    x = torch.linspace(-2.02, 3.03, 101, dtype=torch.float64, requires_grad=True)
    quantizer = ActivationQuantizer(3).double()
    quantizer.set(torch.tensor(0.31), torch.tensor(2))
    quantizer.quantize_probability = keep
    quantizer.generator = torch.Generator().manual_seed(3)
    weight = torch.randn(101, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (quantizer(x) * weight).sum().backward()
    kept = bernoulli_mask(x.detach(), keep, torch.Generator().manual_seed(3)).bool()
    assert keep == 1 or 0 < int(kept.sum()) < 101
    other = x.detach().clone().requires_grad_()
    scale = torch.tensor(0.31, dtype=torch.float64, requires_grad=True)
    y = torch.where(kept, straight_through(other, scale, torch.tensor(2.0), 7), other)
    (y * weight).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(quantizer.scale.grad, scale.grad)


def test_draws_have_their_probability_and_their_seed() -> None:
    x = torch.zeros((999, 101))
    masks = [bernoulli_mask(x, 0.25, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert set(masks[0].unique().tolist()) == {0, 1}
    assert abs(float(masks[0].mean()) - 0.25) < 0.01
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_soft_weight_has_right_gradients() -> None:
    torch.manual_seed(0)
    layer = QuantLayer(nn.Linear(5, 3).double(), 3).double()
    layer.scale.fill_(0.3)  # so that no weight meets the ends of the integer range,
    layer.zero_point.fill_(4)  # where the clamp has no derivative
    layer.learned_integers = SoftRounding().start(layer, layer.weight.detach())
    layer.learn_scales()
    assert layer.log_scale_offset is not None
    x = torch.randn(2, 5, dtype=torch.float64)

    def output(rounding: Tensor, offset: Tensor) -> Tensor:
        state = {"learned_integers.variable": rounding, "log_scale_offset": offset}
        return cast(Tensor, functional_call(layer, state, (x,)))

    rounding = torch.linspace(-2, 2, 15, dtype=torch.float64).reshape(3, 5).requires_grad_()
    offset = layer.log_scale_offset.detach().requires_grad_()
    assert torch.autograd.gradcheck(output, (rounding, offset))


def test_rounding_starts_at_the_float_weight() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3)
    layer = QuantLayer(conv, 8)
    layer.calibrate(2.4)
    layer.learned_integers = SoftRounding().start(layer, conv.weight.detach())
    floor = layer.learned_integers._floor
    inside = (floor >= 0) & (floor + 1 <= 255)
    difference = (layer.trained_weight() - conv.weight)[inside]
    assert float(difference.detach().abs().max()) < 1e-6


def test_untouched_rounding_hardens_to_nearest() -> None:
    torch.manual_seed(0)
    soft, nearest = (QuantLayer(nn.Linear(16, 4), 3) for _ in range(2))
    nearest.layer.load_state_dict(soft.layer.state_dict())
    for layer in (soft, nearest):
        layer.calibrate(2.4)
    soft.learned_integers = SoftRounding().start(soft, soft.weight.detach())
    soft.freeze()
    nearest.freeze()
    assert soft.integers is not None
    assert nearest.integers is not None
    assert float((soft.integers != nearest.integers).float().mean()) < 0.02  # exact halves only


def test_every_consumer_sees_the_quantized_input(module: fx.GraphModule, images: Tensor) -> None:
    attached = insert_quantizers(module, [Bits(4, 4), Bits(4, 4)])
    names = [str(node.target) for node in attached.graph.nodes if node.op == "call_module"]
    assert names.count("input_quantizer_0") == 1
    _, activations = quantizers(attached)
    assert len(activations) == 2
    calibrate([attached], images, 2.4)
    first = activations["input_quantizer_0"]
    seen = fake_quantize(images, first.scale, first.zero_point, 4)
    for layer in quantizers(attached)[0].values():
        layer.layer.weight.data.zero_()
        if layer.layer.bias is not None:
            layer.layer.bias.data.zero_()
    torch.testing.assert_close(attached(images), torch.relu(seen))


def test_layers_of_different_bits_share_the_larger_width() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    forked = fx.symbolic_trace(Fork().eval())
    for bits in ([Bits(4, 8), Bits(4, 4)], [Bits(4, 4), Bits(4, 8)]):
        (quantizer,) = quantizers(insert_quantizers(forked, bits))[1].values()
        assert quantizer.bits == 8


def test_attached_module_without_quantization_is_the_original(
    module: fx.GraphModule, images: Tensor
) -> None:
    attached = insert_quantizers(module, [Bits(4, 4), Bits(4, 4)])
    for quantizer in quantizers(attached)[1].values():
        quantizer.enabled = False
    torch.testing.assert_close(attached(images), module(images))


def test_restored_state_is_bit_equal(module: fx.GraphModule, images: Tensor) -> None:
    bits = [Bits(2, 4), Bits(3, 5)]
    attached = insert_quantizers(module, bits)
    calibrate([attached], images, 2.4)
    freeze([attached])
    again = insert_quantizers(module, bits)
    restore(again, dict(state_of(attached)))
    assert torch.equal(attached(images), again(images))
    integers = dict(state_of(attached))["first.integers"]
    assert int(integers.max()) <= 3


def test_original_is_untouched(module: fx.GraphModule, images: Tensor) -> None:
    before = module(images)
    attached = insert_quantizers(module, [Bits(2, 2), Bits(2, 2)])
    calibrate([attached], images, 2.4)
    freeze([attached])
    assert torch.equal(module(images), before)


def test_transposed_convolution_is_quantized_per_output_channel() -> None:
    layer = QuantLayer(nn.ConvTranspose2d(3, 5, 2), 4)
    layer.calibrate(2.4)
    assert layer.scale.shape == (5,)
    layer.freeze()
    assert layer.integers is not None
    assert layer.integers.shape == (3, 5, 2, 2)
