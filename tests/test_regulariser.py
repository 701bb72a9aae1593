"""The regulariser of soft rounding: the published one of a family of networks, or the given one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modcap.core.serialization import Result
from modcap.graph.network import Network, build
from modcap.jobs.job import Cell
from modcap.jobs.kinds.reconstruct import Reconstruct
from modcap.jobs.plan import plan
from modcap.ptq.rounding import SoftRounding
from modcap.recipe import Recipe


def network(kernel: int, groups: int) -> Network:
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU()),
        *(nn.Conv2d(8, 8, kernel, padding=kernel // 2, groups=groups), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    )
    return build(model.eval(), torch.randn(2, 3, 8, 8))


def regularisers(of: Network, recipe: Recipe) -> set[float | None]:
    cell = Cell(of, "0" * 64, "1" * 64, recipe)
    count = len(of.names)
    groups = Result(meta={"groups": [[i, i + 1] for i in range(count)]})
    select = plan([cell], lambda _: None).cells[0].select
    works = [job.work for job in plan([cell], {select: groups}.get).jobs]
    found = [w.optimiser.rounding for w in works if isinstance(w, Reconstruct) and w.optimiser]
    return {each.regulariser for each in found if isinstance(each, SoftRounding)}


@pytest.mark.parametrize(
    ("kernel", "groups", "published"),
    [(3, 1, 0.01), (3, 2, 0.01), (3, 8, 0.1), (5, 8, 0.2), (5, 1, 0.01)],
)
def test_paper_takes_what_was_published_for_such_networks(
    kernel: int, groups: int, published: float
) -> None:
    assert regularisers(network(kernel, groups), Recipe.preset("paper", k=0)) == {published}


def test_what_is_given_stays() -> None:
    depthwise = network(3, 8)
    given = {"optimiser": {"rounding": {"regulariser": 0.05}}}
    assert regularisers(depthwise, Recipe.preset("paper", k=0, **given)) == {0.05}
    assert regularisers(depthwise, Recipe(k=0)) == {0.01}  # of recipes that are stored
    few = {"optimiser": {"iterations": 100}}
    assert regularisers(depthwise, Recipe.preset("paper", k=0, **few)) == {0.1}
