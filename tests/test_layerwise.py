"""Layer-wise rounding: layers give nearly what they gave, whatever their weights sum to."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from modcap.api import quantize
from modcap.core.errors import InputError
from modcap.graph.forward import run_batched
from modcap.ptq.layerwise import round_layerwise
from modcap.ptq.reconstruct import calibrate, freeze
from modcap.ptq.relative_error import relative_error
from modcap.quantization.bits import Bits
from modcap.quantization.insert import insert_quantizers, layers_of
from modcap.quantization.scheme import Scheme
from modcap.recipe import Recipe
from tests.networks import convolutions

SMOOTH = torch.randn(64, 8, 1, 1, generator=torch.Generator().manual_seed(1)).abs() + (
    0.05 * torch.randn(64, 8, 9, 9, generator=torch.Generator().manual_seed(2))
)
"""Images (N, C, H, W) that differ little from place to place, as photographs do."""


def rounded(
    layer: nn.Module, x: Tensor, bits: int = 4, **scheme: Any
) -> tuple[fx.GraphModule, float, float]:
    """A module of the layer alone, rounded layer-wise; the relative error of its output with the
    nearest integers, and with these."""
    exact = fx.symbolic_trace(nn.Sequential(layer).eval().requires_grad_(False))
    module = insert_quantizers(exact, [Bits(bits, 8)], Scheme(**scheme))
    calibrate([module], x, 2.4)
    nearest = copy.deepcopy(module)
    freeze([nearest])
    round_layerwise([module], x)
    target = run_batched([exact], x)
    near, found = (relative_error(run_batched([m], x), target) for m in (nearest, module))
    return module, float(near), float(found)


def zero_sum(layer: nn.Conv2d) -> nn.Conv2d:
    weight = layer.weight.detach()
    layer.weight = nn.Parameter(weight - weight.mean((1, 2, 3), keepdim=True))
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
        lambda: nn.Conv2d(8, 12, 3, stride=2, padding=2, dilation=2, groups=4),
        lambda: nn.Conv2d(8, 12, (1, 3), padding="same", padding_mode="reflect"),
        lambda: nn.Conv2d(8, 5, 3, bias=False),
    ],
)
def test_filters_that_sum_to_zero_still_do(layer: Any) -> None:
    torch.manual_seed(0)
    _, near, layerwise = rounded(zero_sum(layer()), SMOOTH)
    assert layerwise < 0.5 * near


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    "scheme", [{}, {"weights": "symmetric"}, {"scales": "power-of-two"}], ids=str
)
def test_integers_and_scales_are_of_the_grid(bits: int, scheme: dict[str, str]) -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 40, generator=torch.Generator().manual_seed(3)) + 1
    module, near, layerwise = rounded(nn.Linear(40, 20), x, bits, **scheme)
    assert layerwise < near
    (layer,) = layers_of([module])
    assert layer.integers is not None
    assert int(layer.integers.max()) < 2**bits
    if scheme.get("weights"):
        assert torch.all(layer.zero_point == 2 ** (bits - 1))
    if scheme.get("scales"):
        assert torch.equal(torch.frexp(layer.scale).mantissa, torch.full((20,), 0.5))


def test_layers_of_many_weights_are_seen_in_blocks_and_others_stay_nearest() -> None:
    torch.manual_seed(0)
    x = torch.randn(128, 2100, generator=torch.Generator().manual_seed(3)) + 0.5
    _, near, layerwise = rounded(nn.Linear(2100, 4), x, 3)
    assert layerwise < near
    _, near, layerwise = rounded(nn.ConvTranspose2d(8, 4, 3), SMOOTH)
    assert layerwise == near


def test_inputs_that_never_differ_or_are_zero_do_no_harm() -> None:
    torch.manual_seed(0)
    for x in (torch.zeros(20, 8, 5, 5), torch.ones(20, 8, 5, 5)):
        module, _, _ = rounded(nn.Conv2d(8, 4, 3, groups=4), x)
        assert torch.isfinite(run_batched([module], x)).all()


def test_a_network_is_rounded_and_learns_from_there() -> None:
    x = torch.rand(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    target = convolutions(bias=True)(x).detach()

    def error(**fields: Any) -> float:
        usual = {"w_bits": 2, "a_bits": 8, "k": 0, "calibration": 64, "tuning": 0}
        recipe = Recipe.preset("quick", **usual | fields)
        network = quantize(convolutions(bias=True), x, recipe=recipe, progress=False).network
        return relative_error(network(x), target)

    nearest, rounded = (
        error(method="rtn", rounding_start=start) for start in ("nearest", "layer-wise")
    )
    assert rounded < 0.5 * nearest
    assert error(rounding_start="layer-wise") < nearest


def test_soft_rounding_cannot_start_from_any_integers() -> None:
    with pytest.raises(InputError, match="layer-wise leaves nothing to learn to rounding soft"):
        Recipe.make({"rounding_start": "layer-wise"})
