"""Sizes that a forward reads: only the number of images is free, and it is no constant."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from modcap.graph.capture import capture
from tests.networks import IMAGES, Chain, Squeezed, conv, cut, exported, relative


class Sizes(nn.Module):
    """Reads sizes in one of many ways, in front of its stem or behind it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.stem = conv()
        self.stages = nn.ModuleList([Chain() for _ in range(2)])
        self.last = nn.Linear(768, 5)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x) if "behind" in self.way else None
        n, size = _read(x if stem is None else stem, self.way)
        y = self.stem(x) if stem is None else stem
        for stage in self.stages:
            y = stage(y)
        return self.last(y.reshape(n, size) if size else y.reshape(n, -1))


def _read(x: Tensor, way: str) -> tuple[int, int]:
    if "shape" in way:
        return x.shape[0], 0
    if "unpacked" in way:
        n, c, h, w = x.shape
        return n, c * h * w
    if "keyword" in way:
        return x.size(dim=0), 0
    return (x.size()[0] if "whole" in way else x.size(0)), 0


@pytest.mark.parametrize("behind", ["", " behind"])
@pytest.mark.parametrize("way", ["size", "whole size", "shape", "unpacked", "keyword"])
@pytest.mark.parametrize("archive", [False, True])
def test_a_size_that_is_read_early_joins_no_modules(way: str, behind: str, archive: bool) -> None:
    model = Sizes(way + behind).eval()
    found = cut(exported(model, IMAGES) if archive else model, IMAGES)
    assert found.names == ("stem", "stages.0", "stages.1", "last")
    with torch.no_grad():
        for count in (1, 2):
            assert relative(found(IMAGES[:count]), model(IMAGES[:count])) < 1e-5


class Scaled(nn.Module):
    """Computes with a number that is the same for every batch of these images, yet is no size."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).mean((2, 3)) * x.max().item()


@torch.no_grad()
def test_a_number_that_is_read_off_the_data_stays_so() -> None:
    model = Scaled().eval()
    graph = capture(model, IMAGES)
    assert relative(graph(IMAGES * 3), model(IMAGES * 3)) < 1e-6


@torch.no_grad()
def test_a_squeeze_keeps_the_row_of_a_single_image() -> None:
    model = Squeezed().eval()
    for source in (model, exported(model, IMAGES)):
        graph = capture(source, IMAGES)
        assert relative(graph(IMAGES[:1])[0], model(IMAGES)[0]) < 1e-5


class Counted(nn.Module):
    """Computes with the number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).mean((2, 3)) * (1 + x.shape[0] // 8 + x.shape[0] % 3)


@torch.no_grad()
def test_a_number_that_depends_on_the_batch_is_no_constant() -> None:
    model = Counted().eval()
    graph = capture(model, IMAGES)
    for images in (IMAGES, IMAGES[:1], IMAGES.repeat(6, 1, 1, 1)):
        assert relative(graph(images), model(images)) < 1e-6
