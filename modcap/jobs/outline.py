"""An outline of a network: what plans and estimates need of it, without its weights.

A driver that plans for many checkpoints holds outlines only; who has the networks made them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, cast
from weakref import WeakKeyDictionary

import torch
from pydantic import Field, model_validator
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from modcap.core.named import Frozen
from modcap.graph.network import Network
from modcap.graph.nodes import layer_calls
from modcap.ptq.step_size import kept_for_gradients

__all__ = ["Footprint", "Outline", "outline_of"]


@dataclass(frozen=True)
class Footprint:
    """One module in float32, per image, but for its weights.

    Attributes:
        input, output: bytes of these.
        inside: bytes of all values that it computes, output included.
        live: bytes of values that are there at once in a pass without gradients, input included.
        kept: bytes that a pass with gradients keeps for these, quantizers included.
        weights: bytes of its weights.
        operations: on floating-point numbers.
        positions: the most that a weight layer gives values at, such as height × width.
    """

    input: int
    output: int
    inside: int
    live: int
    kept: int
    weights: int
    operations: int
    positions: int

    @property
    def step_cost(self) -> float:
        """Time of an optimisation step on 32 images, relative to that of other modules.

        Fitted to the steps of the 49 modules of the shipped checkpoints on one core, which it met
        within 14 % on average: a constant, operations, values inside and weights.
        """
        return self.step_cost_of(1.0)

    def step_cost_of(self, share: float) -> float:
        """The same on a ``share`` of these images."""
        images = 8.6e-7 * self.operations + 7.0e-5 * self.inside
        return 1.0 + share * images + 5.1e-6 * self.weights


class Outline(Frozen):
    """Of a network: its digest and the shape of its images; of each of its modules the name, the
    paths of its weight layers in the model, and the footprint; and how many rows the largest kernel
    of a depthwise convolution has, 0 where there is none."""

    digest: str = Field(pattern="^[0-9a-f]{64}$")
    input_shape: tuple[int, int, int]
    names: tuple[str, ...] = Field(min_length=1)
    paths: tuple[Annotated[tuple[str, ...], Field(min_length=1)], ...]
    footprints: tuple[Footprint, ...]
    depthwise: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _of_the_same_modules(self) -> Outline:
        if not len(self.names) == len(self.paths) == len(self.footprints):
            raise ValueError("one name, paths of layers and a footprint for each module")
        return self

    @property
    def layers(self) -> tuple[int, ...]:
        """How many weight layers each module has."""
        return tuple(map(len, self.paths))


_KNOWN: WeakKeyDictionary[Network, Outline] = WeakKeyDictionary()


def outline_of(network: Network | Outline) -> Outline:
    """Measured once, with an image or two of zeros."""
    if isinstance(network, Outline):
        return network
    if network not in _KNOWN:
        _KNOWN[network] = Outline(
            digest=network.digest,
            input_shape=network.input_shape,
            names=network.names,
            paths=network.paths,
            footprints=_measured(network),
            depthwise=_largest_depthwise(network),
        )
    return _KNOWN[network]


def _largest_depthwise(network: Network) -> int:
    layers = (layer for module in network.partition.modules for layer in module.modules())
    kernels = (
        max(layer.kernel_size)
        for layer in layers
        if isinstance(layer, nn.Conv2d) and 1 < layer.in_channels == layer.groups
    )
    return max(kernels, default=0)


def _measured(network: Network) -> tuple[Footprint, ...]:
    found = []
    x = torch.zeros(1, *network.input_shape)
    for module in network.partition.modules:
        sizes = _Sizes(module)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            y = sizes.run(x)
        found.append(
            Footprint(
                input=x.nbytes,
                output=y.nbytes,
                inside=sizes.inside,
                live=sizes.live,
                kept=kept_for_gradients(module, x),
                weights=sum(tensor.nbytes for tensor in module.state_dict().values()),
                operations=counter.get_total_flops(),
                positions=sizes.positions,
            )
        )
        x = y
    return tuple(found)


class _Sizes(fx.Interpreter):
    """Runs a module, and notes the sizes of its values."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.inside = self.live = 0
        self.positions = 1
        self._layers = set(layer_calls(module))

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op not in ("output", "get_attr"):
            alive = {v.untyped_storage().data_ptr(): v.nbytes for v in self._values()}
            self.live = max(self.live, sum(alive.values()) + value.nbytes)
            if n.op != "placeholder":
                self.inside += value.nbytes
            if n in self._layers:
                self.positions = max(self.positions, value.numel() // _channels(self.module, n))
        return value

    def _values(self) -> Iterator[Tensor]:
        return (v for n, v in self.env.items() if isinstance(v, Tensor) and n.op != "get_attr")


def _channels(module: nn.Module, node: fx.Node) -> int:
    """That a weight layer gives."""
    layer = module.get_submodule(str(node.target))
    name = "out_features" if isinstance(layer, nn.Linear) else "out_channels"
    return cast(int, getattr(layer, name))
