"""Capacity by hand, and the selection that follows from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from modcap.core.errors import InputError
from modcap.core.serialization import Result
from modcap.data.image_set import ImageSet
from modcap.graph.network import Network, build
from modcap.jobs.job import Cell, Job
from modcap.jobs.kinds.capacity import capacities_of, capacity_jobs
from modcap.jobs.kinds.select import select_job
from modcap.jobs.run_job import run_job
from modcap.jobs.worker_cache import WorkerCache
from modcap.ptq.bit_policy import BitPolicy
from modcap.ptq.capacity import Signature, data_dependent, data_free, differentials, homogeneous
from modcap.ptq.capacity import signature as signature_of
from modcap.ptq.reconstruct import calibrate, freeze
from modcap.quantization.bits import Bits
from modcap.quantization.insert import insert_quantizers
from modcap.recipe import Recipe


@pytest.fixture(scope="module")
def network() -> Network:
    """Modules of strides 1, 2, 1, 1, 1; the third is depthwise."""
    torch.manual_seed(0)
    layers = [
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU()),
        nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU()),
    ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return build(model.eval(), torch.zeros(2, 3, 8, 8))


def test_data_free_capacity_is_parameters_times_bits_and_more_at_strides(network: Network) -> None:
    found = [data_free(m, [Bits(3, 4)], 1.6) for m in network.partition.modules]
    assert found == pytest.approx([3 * 216, 3 * 1152 * 1.6, 3 * 144, 3 * 128, 3 * 40])


def test_neighbours_are_homogeneous_where_strides_and_groups_are_equal(network: Network) -> None:
    modules = network.partition.modules
    assert signature_of(modules[1]) == Signature(2, ("dense",))
    assert signature_of(modules[2]) == Signature(1, ("depthwise",))
    assert homogeneous(modules) == [False, False, False, True]


def test_a_larger_error_is_a_lower_capacity() -> None:
    target = torch.zeros(4, 3, 2)
    assert data_dependent(target + 0.5, target) == pytest.approx(-0.25 * 6)
    assert differentials([-1.5, -0.5, -0.5]) == [1.0, 0.0]


def selection(network: Network, capacities: list[float], **fields: Any) -> dict[str, Any]:
    recipe = Recipe.make({"homogeneity": "any"} | fields)
    cell = Cell(network, "calibration", "evaluation", recipe)
    job: Job = select_job(cell, tuple("abcde"[: len(capacities)]))
    bench = WorkerCache.holding({network.digest: network})
    return run_job(job, bench, [Result(meta={"capacity": c}) for c in capacities]).meta


def test_logarithms_keep_the_order_of_errors_around_one(network: Network) -> None:
    capacities = [-0.01, -100.0, -100.0, -1.0, -1.0]
    fields = {"capacity": "data-dependent", "capacity_scale": "log"}
    found = selection(network, capacities, k=1, **fields)
    assert found["differentials"] == pytest.approx([9.2103**2, 0, 4.6052**2, 0], rel=1e-3)
    assert found["selected"] == [True, False, False, False]


def test_rounding_to_nearest_joins_nothing_by_any_selection(network: Network) -> None:
    for way in ("random", "top-k"):
        assert selection(network, [], method="rtn", selection=way, k=2)["k"] == 0


def test_without_a_capacity_there_is_nothing_to_select_by(network: Network) -> None:
    assert selection(network, [], capacity="none", k=None)["k"] == 0
    assert selection(network, [], capacity="none", selection="random", k=2)["k"] == 2
    assert selection(network, [], capacity="none", k=2, method="rtn")["k"] == 0


def test_data_dependent_capacity_is_measured_behind_the_quantized_prefix(network: Network) -> None:
    x = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images = ImageSet(x, torch.zeros(40).long(), (0.0,) * 3, (1.0,) * 3)
    fields = {"capacity": "data-dependent", "capacity_images": 30, "w_bits": 2, "a_bits": 3, "k": 1}
    recipe = Recipe.make(fields | {"optimiser": {"batch_size": 8}, "calibration": 40})
    bench = WorkerCache.holding({network.digest: network, images.digest: images})
    (job,) = capacity_jobs(Cell(network, images.digest, images.digest, recipe))
    found = capacities_of([run_job(job, bench, [])])
    full = quantized = x[:30]
    bits = BitPolicy(2, 3, 8).resolve(network.partition)
    for value, module, own in zip(found, network.partition.modules, bits, strict=True):
        attached = insert_quantizers(module, own)
        calibrate([attached], full, recipe.scale_exponent)
        freeze([attached])
        with torch.no_grad():
            full, quantized = module(full), attached(quantized)
        assert value == pytest.approx(-float((quantized - full).square().sum()) / 30, rel=1e-4)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_numpy_cannot_take_is_refused(seed: int) -> None:
    with pytest.raises(InputError, match="recipe: seed"):
        Recipe.make({"seed": seed})
