"""The quantizers against a straightforward reference in plain Python."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modcap.quantization.affine import dequantize, fake_quantize, levels, quantize
from modcap.quantization.scale_search import search_scale, spread

FINITE = st.floats(-100, 100, width=32)


def round_half_even(value: float) -> int:
    return round(value)


def reference(x: float, scale: float, zero: int, bits: int) -> float:
    q = min(max(round_half_even(x / scale) + zero, 0), 2**bits - 1)
    return (q - zero) * scale


@settings(deadline=None)
@given(
    st.lists(FINITE, min_size=1, max_size=20),
    st.sampled_from([0.25, 0.1, 3.0]),
    st.integers(2, 8),
    st.data(),
)
def test_fake_quantize_is_the_formula(
    values: list[float], scale: float, bits: int, data: st.DataObject
) -> None:
    zero = data.draw(st.integers(0, 2**bits - 1))
    x = torch.tensor(values, dtype=torch.float64)
    got = fake_quantize(x, torch.tensor(scale, dtype=torch.float64), torch.tensor(zero), bits)
    want = [reference(v, scale, zero, bits) for v in values]
    assert got.tolist() == pytest.approx(want)


@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_survive_the_round_trip(bits: int) -> None:
    q = torch.arange(levels(bits) + 1).float()
    scale, zero = torch.tensor(0.37), torch.tensor(float(levels(bits) // 3))
    assert torch.equal(quantize(dequantize(q, scale, zero), scale, zero, bits), q)


def brute_force(row: list[float], bits: int, p: float) -> float:
    """The least error over the same family of candidates, without any vectorisation."""
    low, high, top = min(*row, 0.0), max(*row, 0.0), 2**bits - 1
    best = math.inf
    for step, shift in itertools.product(range(90), (-1, 0, 1)):
        shrink = 1 - step / 100
        scale = (high - low) * shrink / top
        zero = min(max(round_half_even(-low * shrink / scale) + shift, 0), top)
        best = min(best, sum(abs(v - reference(v, scale, zero, bits)) ** p for v in row))
    return best


@pytest.mark.parametrize(("bits", "p"), [(2, 2.4), (4, 2.4), (4, 2.0), (8, 2.4)])
def test_search_finds_the_least_error(bits: int, p: float) -> None:
    x = torch.randn(4, 40, generator=torch.Generator().manual_seed(bits), dtype=torch.float64)
    scale, zero = search_scale(x, bits, p)
    error = (x - fake_quantize(x, scale[:, None], zero[:, None], bits)).abs().pow(p).sum(1)
    want = [brute_force(row, bits, p) for row in x.tolist()]
    assert error.tolist() == pytest.approx(want, rel=1e-6)
    assert torch.equal(zero, zero.round())
    assert bool(((zero >= 0) & (zero <= levels(bits))).all())


def test_search_of_a_row_of_zeros_gives_zeros() -> None:
    x = torch.zeros(2, 9)
    scale, zero = search_scale(x, 4)
    assert bool((scale > 0).all())
    assert torch.equal(fake_quantize(x, scale[:, None], zero[:, None], 4), x)


def test_error_falls_with_bits() -> None:
    x = torch.randn(8, 500, generator=torch.Generator().manual_seed(0))
    errors = []
    for bits in range(2, 9):
        scale, zero = search_scale(x, bits)
        errors.append(
            float((x - fake_quantize(x, scale[:, None], zero[:, None], bits)).square().mean())
        )
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    "shape", [(64, 256, 14, 14), (64, 64, 56, 56), (64, 128, 4, 4), (64, 1280)]
)
def test_the_sample_of_a_search_misses_no_pixel_or_channel(shape: tuple[int, ...]) -> None:
    count = math.prod(shape)
    places = spread(count, 1 << 14)
    assert len(places.unique()) == 1 << 14
    for size, found in zip(shape, np.unravel_index(places.numpy(), shape), strict=True):
        share = np.bincount(found, minlength=size) * size / len(places)
        assert share.min() > 0.2, size
        assert share.max() < 2.5, size


@pytest.mark.parametrize("share", [1e-3, 1e-4, 2e-5, 5e-6])
@pytest.mark.parametrize("rows", [1, 3])
def test_rare_large_values_are_not_cut_off(share: float, rows: int) -> None:
    """At 8 bits the whole range has an error of 0.004 at most; cut to a tenth of it, of 0.1."""
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, 1_000_000, generator=generator).relu()
        for row in x:
            row[torch.randperm(x.shape[1], generator=generator)[: int(share * x.shape[1])]] = 60.0
        scale, zero = search_scale(x, 8)
        away = x - fake_quantize(x, scale[:, None], zero[:, None], 8)
        assert float((away.square().sum(1) / x.square().sum(1)).max()) < 0.006


def test_a_border_of_zeros_does_not_decide_the_scale() -> None:
    values = torch.randn(64, 64, 28, 28, generator=torch.Generator().manual_seed(0))
    values[..., 0] = 0.01 * values[..., 0]  # a stride over the whole would meet little else
    row = values.reshape(1, -1)
    scale, _ = search_scale(row, 3)
    by_all = search_scale(values[:, :2, :, 1:].reshape(1, -1)[:, :16384], 3)[0]
    assert scale.item() == pytest.approx(by_all.item(), rel=0.15)
