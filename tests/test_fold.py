"""Batch norms are folded where that changes nothing, and stay elsewhere."""

from __future__ import annotations

import torch
from torch import fx, nn

from modcap.graph.capture import capture
from modcap.graph.fold_batch_norm import fold_batch_norms
from tests.networks import IMAGES, conv, relative


@torch.no_grad()
def test_folding_equals_the_original_and_leaves_no_foldable_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        conv(), nn.BatchNorm2d(3), nn.ReLU(), nn.ConvTranspose2d(3, 4, 2, bias=False),
        nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(4 * 289, 6),
        nn.BatchNorm1d(6),
    ).eval()  # fmt: skip
    for module in model:
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    graph = fold_batch_norms(capture(model, IMAGES))
    assert relative(graph(IMAGES), model(IMAGES)) < 1e-5
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in graph.modules())


def test_norm_in_front_of_a_convolution_stays() -> None:
    model = nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(3), conv(), nn.Flatten()).eval()
    graph = fold_batch_norms(capture(model, IMAGES))
    assert isinstance(graph, fx.GraphModule)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in graph.modules()) == 1
