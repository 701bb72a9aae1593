"""The estimate of a job's memory."""

from __future__ import annotations

import itertools

import pytest
import torch

from modcap import zoo
from modcap.graph.network import Network, build
from modcap.jobs.cost_model import evaluation_memory, footprints, reconstruction_memory
from modcap.ptq.selection import Span


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
    assert reconstruction_memory(network, Span(2, 3), 20_000, 20_000) > one
    wide = reconstruction_memory(network, Span(2, 4), 20_000, 20_000)
    assert wide > reconstruction_memory(network, Span(2, 3), 20_000, 20_000)


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


def test_test_images_are_counted(network: Network) -> None:
    imagenet = 50_000 * 3 * 224 * 224
    assert evaluation_memory(network, imagenet) > evaluation_memory(network) + imagenet
