"""The estimate of a job's memory."""

from __future__ import annotations

import itertools

import pytest
import torch

from modcap import zoo
from modcap.graph.network import Network, build
from modcap.jobs.cost_model import evaluation_memory, footprints, reconstruction_memory
from modcap.jobs.job import Arithmetic, Cell
from modcap.jobs.kinds.reconstruct import reconstruct_job
from modcap.jobs.pass_sizes import PASS, STEP, batch_size, images_per_pass, images_per_step
from modcap.ptq.selection import Span
from modcap.recipe import Recipe


@pytest.fixture(scope="module")
def network() -> Network:
    return build(zoo.resnet18_narrow().eval(), torch.randn(2, 1, 28, 28))


def test_footprints_are_those_of_the_shapes(network: Network) -> None:
    found = footprints(network)
    assert len(found) == len(network.partition.modules)
    assert found[0].input == 4 * 28 * 28
    assert all(a.output == b.input for a, b in itertools.pairwise(found))
    assert all(module.inside >= module.output for module in found)
    stored = sum(p.nbytes for module in network.partition.modules for p in module.parameters())
    assert sum(module.weights for module in found) >= stored


def test_memory_grows_with_images_batch_and_group(network: Network) -> None:
    one = reconstruction_memory(network, Span(2, 3), 20_000, 32)
    assert reconstruction_memory(network, Span(2, 3), 80_000, 32) > one
    assert reconstruction_memory(network, Span(2, 3), 20_000, 512) > one
    wide = reconstruction_memory(network, Span(2, 4), 1000, 512)
    assert wide > reconstruction_memory(network, Span(2, 3), 1000, 512)


def test_a_large_batch_is_passed_in_parts(network: Network) -> None:
    assert images_per_step(network, Span(2, 3), 32) is None
    parts = [images_per_step(network, Span(2, 3), batch) for batch in (20_000, 40_000)]
    kept = footprints(network)[2].kept
    assert parts[0] == parts[1]
    assert parts[0] is not None
    assert STEP / 2 < parts[0] * kept <= STEP
    memory = [reconstruction_memory(network, Span(2, 3), 1000, n) for n in (20_000, 40_000)]
    assert memory[0] == memory[1] < 4 << 30


def test_activations_in_files_are_not_counted(network: Network) -> None:
    bounded = [reconstruction_memory(network, Span(2, 3), n, 32, 1 << 30) for n in (10**6, 10**7)]
    assert bounded[0] == bounded[1] < reconstruction_memory(network, Span(2, 3), 10**6, 32)


def test_memory_grows_with_channels() -> None:
    def memory(width: int) -> int:
        layers = [torch.nn.Conv2d(3, width, 3, padding=1), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(width * 256, 4))
        made = build(model.eval(), torch.randn(2, 3, 16, 16))
        return reconstruction_memory(made, Span(0, 1), 20_000, 32)

    assert memory(8) < memory(32) < memory(64)


def test_small_jobs_ask_for_little(network: Network) -> None:
    assert reconstruction_memory(network, Span(0, 1), 48, 16) <= 1 << 30
    assert evaluation_memory(network) <= 2 << 30


@pytest.mark.parametrize("pixels", [28, 224])
def test_passes_are_smaller_where_images_are_large(pixels: int) -> None:
    made = build(zoo.resnet18_narrow().eval(), torch.randn(2, 1, pixels, pixels))
    widest = max(module.inside for module in footprints(made))
    images = images_per_pass(made)
    assert images == 256 if pixels == 28 else images * widest <= PASS < 2 * images * widest
    recipe = Recipe.preset("quick", calibration=1024, k=0)
    keys = Arithmetic.fields_of(Cell(made, "calibration", "evaluation", recipe))
    assert keys["pass_images"] == images


def test_positions_bound_the_images_of_a_step_where_they_are_many() -> None:
    recipe = Recipe.preset("quick", positions=25088, k=0)
    small, large = (
        build(zoo.resnet18_narrow().eval(), torch.randn(2, 1, pixels, pixels))
        for pixels in (28, 112)
    )
    one_by_one = [Span(i, i + 1) for i in range(len(small.names))]
    assert {batch_size(small, span, recipe) for span in one_by_one} == {32}
    batches = [batch_size(large, span, recipe) for span in one_by_one]
    assert batches[0] == 4  # at least, of 112 x 112
    assert 4 < batches[4] < batches[-1] == 32
    assert batch_size(large, Span(0, len(batches)), recipe) == 4
    free = Recipe.preset("quick", k=0)
    assert {batch_size(large, span, free) for span in one_by_one} == {32}


def test_positions_change_keys_only_where_they_bite() -> None:
    for pixels, same in ((28, True), (112, False)):
        made = build(zoo.resnet18_narrow().eval(), torch.randn(2, 1, pixels, pixels))
        keys = [
            reconstruct_job(
                Cell(made, "calibration", "evaluation", Recipe.preset("quick", positions=bound)),
                Span(0, 1),
                0,
                (),
            ).key
            for bound in (None, 25088)
        ]
        assert (keys[0] == keys[1]) == same
