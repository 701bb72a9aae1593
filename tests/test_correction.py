"""The correction maps every channel to least squares and changes neither integers nor size."""

from __future__ import annotations

import pytest
import torch

from modcap.graph.forward import Passes, run_batched
from modcap.ptq.channel_correction import correct
from modcap.ptq.relative_error import relative_error
from modcap.quantization.insert import quantizers
from tests.networks import convolutions, rounded


@torch.no_grad()
def test_outputs_have_the_mean_of_full_precision_and_no_remaining_slope() -> None:
    x = torch.randn(64, 3, 12, 12)
    floats, modules = rounded(convolutions(bias=True), x)
    before, after = correct(floats, modules, x)
    assert after < before
    z, y = run_batched(modules, x), run_batched(floats, x)
    assert torch.allclose(z.mean(0), y.mean(0), atol=1e-4)
    centred = z - z.mean(0)
    inside = ((y - z) * centred).mean(0) / centred.square().mean(0)
    assert torch.allclose(inside, torch.zeros_like(inside), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_integers_stay_and_scales_change_per_channel(bias: bool) -> None:
    x = torch.randn(32, 3, 12, 12)
    floats, modules = rounded(convolutions(bias), x)
    layers = [layer for m in modules for layer in quantizers(m)[0].values()]
    integers = [layer.integers.clone() for layer in layers]
    scales = [layer.scale.clone() for layer in layers]
    correct(floats, modules, x)
    for layer, kept, scale in zip(layers, integers, scales, strict=True):
        assert torch.equal(layer.integers, kept)
        ratio = layer.scale / scale
        assert ((ratio >= 0.5) & (ratio <= 2)).all()
        image = (kept.float() - layer.per_channel_view(layer.zero_point)) * layer.per_channel_view(
            layer.scale
        )
        assert torch.allclose(layer.layer.weight, image, atol=1e-6)
    assert (layers[0].layer.bias is not None) is bias


@torch.no_grad()
def test_a_dead_channel_is_left_finite() -> None:
    x = torch.randn(16, 3, 12, 12)
    model = convolutions(bias=True)
    first = model[0][0]  # type: ignore[index]
    first.weight[2], first.bias[2] = 0.0, -1.0
    floats, modules = rounded(model, x)
    correct(floats, modules, x)
    assert torch.isfinite(run_batched(modules, x)).all()


@torch.no_grad()
def test_modules_of_large_images_are_corrected_on_fewer_of_them() -> None:
    x = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    errors = []
    for counts, passes in ((None, None), ([16, 32, 64], Passes(images=16))):
        floats, modules = rounded(convolutions(bias=True), x)
        places = None if counts is None else [*counts, *[64] * len(floats)][: len(floats)]
        before, after = correct(floats, modules, x, places, passes)
        assert after < before
        errors.append(after)
        z = run_batched(modules, x, passes)
        assert after == pytest.approx(relative_error(z, run_batched(floats, x)), rel=1e-3)
    assert errors[1] == pytest.approx(errors[0], rel=0.3)
