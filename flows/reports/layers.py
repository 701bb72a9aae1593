"""The weight layers of an artifact: bits, bytes, operations, and how their integers lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from modcap.export.artifact import QuantizedNetwork, unpack_network
from modcap.graph.nodes import weight_layers
from modcap.quantization.affine import levels
from modcap.quantization.insert import quantizers
from modcap.quantization.layers import QuantLayer

__all__ = ["BINS", "Layer", "layers_in"]

BINS = 32
"""Of a histogram, at most: finer ones are added up."""


@dataclass(frozen=True)
class Layer:
    """One weight layer.

    Attributes:
        module: the name of the module that it belongs to.
        name: its own, within the module.
        w_bits, a_bits: of its weights, and of its input (0 where these stay float).
        weights: how many there are.
        bytes: of weights, packed where they are integers, scales, zero points and bias.
        macs: multiplications with a weight, for one image.
        low, high: the range of its weights, dequantized.
        edge: share of weights on the lowest or the highest level of their channel.
        histogram: weights on each level, of all channels, the lowest first; none of float ones.
        reach: the values that its input's levels reach.
        seen: smallest and largest value of its input, and the share that was clipped, where known.
    """

    module: str
    name: str
    w_bits: int
    a_bits: int
    weights: int
    bytes: int
    macs: int
    low: float
    high: float
    edge: float
    histogram: tuple[int, ...]
    reach: tuple[float, float] | None = None
    seen: tuple[float, float, float] | None = None

    @property
    def place(self) -> str:
        """Its name behind that of its module, of which it begins with what a graph may spell."""
        spelt = self.module.replace(".", "_")
        for prefix in (self.module, spelt):
            if self.name.startswith(prefix):
                return self.module + self.name[len(prefix) :]
        return f"{self.module}.{self.name}"


def layers_in(artifact: bytes, seen: Mapping[str, Mapping[str, float]]) -> list[Layer]:
    """The layers of a packed network, in order.

    Args:
        artifact: its bytes.
        seen: what evaluation measured of each activation quantizer, by ``i.NAME``.
    """
    network = unpack_network(artifact)
    macs = _operations(network)
    found: list[Layer] = []
    for index, module in enumerate(network.chain):
        graph = cast(fx.GraphModule, module)
        layers, inputs = quantizers(graph)
        for name, source in _sources(graph):
            layer = layers.get(name) or graph.get_submodule(name)
            act = inputs.get(source)
            measured = seen.get(f"{index}.{source}")
            found.append(
                Layer(
                    module=network.names[index],
                    name=name,
                    a_bits=0 if act is None else act.bits,
                    macs=macs[id(layer)],
                    reach=None if act is None else _reach(act.bits, act.scale, act.zero_point),
                    seen=None if measured is None else _ends(measured),
                    **(_weights(layer) if isinstance(layer, QuantLayer) else _floats(layer)),
                )
            )
    return found


def _ends(seen: Mapping[str, float]) -> tuple[float, float, float]:
    return seen["low"], seen["high"], seen["clipped"]


def _sources(graph: fx.GraphModule) -> Iterator[tuple[str, str]]:
    """Each weight layer, once, and the name of what makes its input."""
    left = {*quantizers(graph)[0], *(str(node.target) for node in weight_layers(graph))}
    for node in graph.graph.nodes:
        if node.op == "call_module" and node.target in left:
            left.remove(node.target)
            yield str(node.target), str(cast(fx.Node, node.args[0]).target)


def _weights(layer: QuantLayer) -> dict[str, Any]:
    integers = cast(Tensor, layer.integers)
    counts = torch.bincount(integers.flatten().long(), minlength=levels(layer.bits) + 1)
    weight, bias = layer.weight, cast("Tensor | None", layer.layer.bias)
    bits = integers.numel() * layer.bits
    return {
        "w_bits": layer.bits,
        "weights": integers.numel(),
        "bytes": -(-bits // 8) + 5 * len(layer.scale) + (0 if bias is None else 4 * len(bias)),
        "low": float(weight.min()),
        "high": float(weight.max()),
        "edge": int(counts[0] + counts[-1]) / max(1, integers.numel()),
        "histogram": tuple(_coarse(counts).tolist()),
    }


def _floats(layer: nn.Module) -> dict[str, Any]:
    weight, bias = cast(Tensor, layer.weight), cast("Tensor | None", layer.bias)
    return {
        "w_bits": 0,
        "weights": weight.numel(),
        "bytes": weight.nbytes + (0 if bias is None else bias.nbytes),
        "low": float(weight.min()),
        "high": float(weight.max()),
        "edge": 0.0,
        "histogram": (),
    }


def _coarse(counts: Tensor) -> Tensor:
    return counts if len(counts) <= BINS else counts.reshape(BINS, -1).sum(1)


def _reach(bits: int, scale: Tensor, zero: Tensor) -> tuple[float, float]:
    return float(-zero * scale), float((levels(bits) - zero) * scale)


@torch.no_grad()
def _operations(network: QuantizedNetwork) -> dict[int, int]:
    """Multiplications with a weight of each layer, by its id, for one image of zeros."""
    found: dict[int, int] = {}

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        plain = layer.layer if isinstance(layer, QuantLayer) else layer
        values = inputs[0] if getattr(plain, "transposed", False) else output
        made = cast(Tensor, plain.weight)[0].numel() * values.numel()
        found[id(layer)] = found.get(id(layer), 0) + made

    graphs = [cast(fx.GraphModule, module) for module in network.chain]
    layers = [graph.get_submodule(name) for graph in graphs for name, _ in _sources(graph)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        network(torch.zeros(1, *network.input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    return found
