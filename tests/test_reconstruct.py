"""Reconstruction: it reduces the error, is deterministic, and reproduces the published terms."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from modcap.quantized import Bits, attach, state_of
from modcap.recipe import Method, Optimiser, Precision
from modcap.reconstruct import Inputs, _beta, calibrate, chain, harden, reconstruct, relative_error

FAST = Optimiser(
    iterations=150, rounding_rate=1e-2, scale_rate=1e-3, relative_scale_rate=True, batch_size=32
)


def block(seed: int) -> fx.GraphModule:
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(4, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 4, 1), nn.ReLU()
    )
    return fx.symbolic_trace(layers.eval().requires_grad_(False))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(128, 4, 6, 6, generator=torch.Generator().manual_seed(5))


def group(images: Tensor, blocks: int = 1) -> tuple[list[fx.GraphModule], Inputs]:
    floats = [block(seed) for seed in range(blocks)]
    attached = [attach(module, [Bits(2, 4), Bits(2, 4)]) for module in floats]
    calibrate(attached, images, 2.4)
    return attached, Inputs(images, images, chain(floats, images))


@pytest.mark.parametrize("method", [Method.ADAROUND, Method.BRECQ, Method.QDROP])
@pytest.mark.parametrize("blocks", [1, 2])
def test_beats_rounding_to_nearest(images: Tensor, method: Method, blocks: int) -> None:
    attached, inputs = group(images, blocks)
    nearest = reconstruct(copy.deepcopy(attached), inputs, Method.RTN, FAST, seed=0)
    outcome = reconstruct(attached, inputs, method, FAST, seed=0)
    assert outcome.error < 0.8 * nearest.error
    assert outcome.curve[-1, 0] == FAST.iterations - 1
    assert float(relative_error(chain(attached, images), inputs.target)) == outcome.error


def test_bfloat16_rounds_nearly_as_well_and_leaves_float32(images: Tensor) -> None:
    errors = []
    for precision in Precision:
        attached, inputs = group(images, 2)
        settings = FAST.model_copy(update={"precision": precision})
        outcome = reconstruct(attached, inputs, Method.QDROP, settings, seed=0)
        errors.append(outcome.error)
        assert outcome.output.dtype == torch.float32
        tensors = [t for module in attached for _, t in state_of(module)]
        assert {t.dtype for t in tensors} == {torch.float32, torch.uint8}
    exact, coarse = errors
    assert coarse != exact  # so it was not ignored
    assert coarse < 1.2 * exact


def test_same_seed_same_bytes_other_seed_other_bytes(images: Tensor) -> None:
    states = []
    for seed in (3, 3, 4):
        attached, inputs = group(images)
        reconstruct(attached, inputs, Method.QDROP, FAST, seed)
        states.append(dict(state_of(attached[0])))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_nothing_is_left_soft(images: Tensor) -> None:
    attached, inputs = group(images)
    reconstruct(attached, inputs, Method.QDROP, FAST, seed=0)
    first, second = chain(attached, images), chain(attached, images)
    assert torch.equal(first, second)
    assert not any(p.requires_grad and p.grad is not None for p in attached[0].parameters())


def test_zero_iterations_is_rounding_to_nearest(images: Tensor) -> None:
    attached, inputs = group(images)
    nearest = copy.deepcopy(attached)
    harden(nearest)
    settings: dict[str, Any] = FAST.model_dump() | {"iterations": 0}
    reconstruct(attached, inputs, Method.QDROP, Optimiser(**settings), seed=0)
    assert torch.equal(chain(attached, images), chain(nearest, images))


def test_beta_anneals_from_start_to_end_after_the_warm_up() -> None:
    settings = Optimiser()
    assert _beta(0.1, settings) is None
    assert _beta(0.2, settings) == pytest.approx(20)
    assert _beta(0.6, settings) == pytest.approx(11)
    assert _beta(1.0, settings) == pytest.approx(2)


def test_progress_is_told_of_the_first_and_the_last_step(images: Tensor) -> None:
    attached, inputs = group(images)
    seen: list[tuple[int, int, float]] = []
    reconstruct(attached, inputs, Method.BRECQ, FAST, 0, lambda *report: seen.append(report))
    assert seen[0][:2] == (1, 150)
    assert seen[-1][:2] == (150, 150)
    assert len(seen) <= 60
