"""Any network is cut into modules that hold each layer once, in its order, and are the network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from modcap.graph.capture import capture
from modcap.graph.nodes import layer_calls, weight_layers
from modcap.graph.partition import Partition, partition

WIDTH = 2  # channels of every value
IMAGES = torch.randn(2, WIDTH, 6, 6, generator=torch.Generator().manual_seed(0))
ONE = ("layer", "relu", "pool", "again", "plain block", "residual block")
TWO = ("add", "gate", "join")


class Block(nn.Module):
    """Two layers, with a shortcut or without."""

    def __init__(self, shortcut: bool) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(F.relu(self.one(x)))
        return x + y if self.shortcut else y


@dataclass(frozen=True)
class Step:
    """One value of a network: what is done, and the values, counted from the images, it takes."""

    kind: str
    takes: tuple[int, ...]

    @property
    def layers(self) -> int:
        return {"layer": 1, "again": 1, "join": 1}.get(self.kind, 2 * ("block" in self.kind))


class Network(nn.Module):
    """Computes steps, then adds up every value that none of them took, and averages over places."""

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        torch.manual_seed(len(steps))
        self.steps = steps
        made: list[nn.Module] = []
        for step in steps:
            if step.kind == "again":  # the first of these layers, called once more
                first = next(
                    (m for m in made if type(m) is nn.Conv2d and m.in_channels == WIDTH), None
                )
                made.append(first or nn.Conv2d(WIDTH, WIDTH, 3, padding=1))
            elif "block" in step.kind:
                made.append(Block("residual" in step.kind))
            elif step.layers:
                made.append(nn.Conv2d(WIDTH * len(step.takes), WIDTH, 3, padding=1))
            else:
                made.append(nn.Identity())
        self.made = nn.ModuleList(made)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for step, layer in zip(self.steps, self.made, strict=True):
            taken = [values[i] for i in step.takes]
            match step.kind:
                case "relu":
                    values.append(F.relu(taken[0]))
                case "pool":
                    values.append(F.avg_pool2d(taken[0], 3, 1, 1))
                case "add":
                    values.append(taken[0] + taken[1])
                case "gate":
                    values.append(taken[0] * torch.sigmoid(taken[1]))
                case "join":
                    values.append(layer(torch.cat(taken, 1)))
                case _:
                    values.append(layer(taken[0]))
        used = {i for step in self.steps for i in step.takes}
        total = values[-1]
        for i in range(1, len(values) - 1):
            if i not in used:
                total = total + values[i]
        return total.mean((2, 3))


@st.composite
def networks(draw: Any, kinds: Sequence[str] = (*ONE, *TWO)) -> Network:
    """Mostly chains, in which some steps reach back to earlier values; one layer at least."""
    steps: list[Step] = []
    for number in range(draw(st.integers(1, 9))):
        kind = draw(st.sampled_from(kinds)) if number else "layer"
        back = draw(st.integers(0, number)) if draw(st.booleans()) else number
        steps.append(Step(kind, (number, back) if kind in TWO else (back,)))
    return Network(steps)


def cut(network: nn.Module) -> tuple[fx.GraphModule, Partition]:
    graph = capture(network.eval(), IMAGES)
    return graph, partition(graph)


def weights(module: fx.GraphModule) -> list[bytes]:
    """What each call of a layer has for weights, in order; they tell layers from each other."""
    layers = (module.get_submodule(str(node.target)) for node in layer_calls(module))
    return [layer.weight.detach().numpy().tobytes() for layer in layers]


FEW = settings(max_examples=25, deadline=None, derandomize=True)


@FEW
@given(networks())
def test_modules_hold_every_layer_once_in_order_and_are_the_network(network: Network) -> None:
    graph, found = cut(network)
    own = [weights(module) for module in found.modules]
    assert [w for each in own for w in each] == weights(graph)
    homes = Counter(w for each in own for w in set(each))
    assert set(homes.values()) == {1}
    assert sum(found.layers) == len(weight_layers(graph)) == len(homes)
    assert all(found.layers)
    assert len(set(found.names)) == len(found.names) == len(found.modules)
    with torch.no_grad():
        torch.testing.assert_close(found(IMAGES), network(IMAGES))


def crossings(steps: Sequence[Step]) -> list[int]:
    """After which values nothing else is alive, by the definition: whether any step, or the sum
    at the end, takes an earlier one later on, and no layer is called on both sides."""
    taken = [step.takes for step in steps]
    used = {i for takes in taken for i in takes}
    loose = [i for i in range(1, len(steps)) if i not in used]
    again = [n for n, step in enumerate(steps, 1) if step.kind == "again"]
    first = next(
        (n for n, step in enumerate(steps, 1) if step.kind in ("layer", "again")), len(steps)
    )
    return [
        i
        for i in range(1, len(steps))
        if all(j >= i for takes in taken[i:] for j in takes)
        and not any(j < i for j in loose)
        and not (again and first <= i < max(again))
    ]


@FEW
@given(networks(kinds=("layer", "relu", "pool", "again", *TWO)))
def test_every_place_where_one_value_is_alive_is_cut(network: Network) -> None:
    """Without blocks, modules are what lies between two such places and has a layer."""
    _, found = cut(network)
    ends = [0, *crossings(network.steps), len(network.steps)]
    pieces = [network.steps[a:b] for a, b in pairwise(ends)]
    with_layers = [piece for piece in pieces if any(step.layers for step in piece)]
    assert len(found.modules) == len(with_layers)


@FEW
@given(networks())
def test_blocks_that_occur_twice_stay_whole(network: Network) -> None:
    blocks = [block for block in network.made if isinstance(block, Block)]
    _, found = cut(network)
    own = [set(weights(module)) for module in found.modules]
    for block in blocks if len(blocks) > 1 else []:
        both = {layer.weight.detach().numpy().tobytes() for layer in (block.one, block.two)}
        assert any(both <= each for each in own)
