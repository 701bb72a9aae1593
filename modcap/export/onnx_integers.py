"""Networks that onnxruntime's 8-bit kernels compute: where pairs of quantizing nodes stand there.

It fuses ``DequantizeLinear``, an operator and ``QuantizeLinear`` to one operator over integers. So
pairs stand directly around what calculates: they move in front of what only moves or chooses among
values, which is done to integers then, and in front of activation functions, which the ends of the
levels do, or which remain as nodes of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import fx

from modcap.export.artifact import QuantizedNetwork
from modcap.export.lowering import ACTIVATION
from modcap.quantization.affine import levels, middle
from modcap.quantization.insert import quantizers
from modcap.quantization.layers import ActivationQuantizer
from modcap.quantization.operator_kinds import is_fused, kind_of, passes

__all__ = ["around_calculations", "grid_of", "suits_integer_kernels"]

WIDTH = 8


def suits_integer_kernels(network: QuantizedNetwork) -> bool:
    """Whether all is quantized, to 8 bits, with weights that are symmetric."""
    found = [quantizers(module) for module in network.chain]
    layers = [layer for of_module, _ in found for layer in of_module.values()]
    activations = [quantizer for _, of_module in found for quantizer in of_module.values()]
    centred = all(bool((layer.zero_point == middle(WIDTH)).all()) for layer in layers)
    widths = {quantizer.bits for quantizer in (*layers, *activations)}
    return centred and widths == {WIDTH} and all(layer.reads for layer in layers)


def around_calculations(
    graph: fx.Graph, quantizer_of: Callable[[str], ActivationQuantizer]
) -> fx.Graph:
    """A copy of a graph of ATen operators, its calls of ``modcap::activation`` moved."""
    moved = fx.Graph()
    moved.output(moved.graph_copy(graph, {}))
    ahead = [node for node in moved.nodes if node.target is ACTIVATION]
    while ahead:
        node = ahead.pop()
        source = cast(fx.Node, node.args[0])
        if source.op != "call_function" or len(source.users) > 1:
            continue
        if passes(_NO_MODULES, source):
            ahead += [_put_behind(moved, read, node) for read in _read(source)]
            node.replace_all_uses_with(source)
            moved.erase_node(node)
        elif is_fused(_NO_MODULES, source):
            quantizer = quantizer_of(str(node.args[1]))
            (read, *_) = _read(source)
            if _does_nothing(source, quantizer):
                node.replace_input_with(source, read)
                moved.erase_node(source)
                ahead.append(node)
            else:
                _put_behind(moved, read, node)
    return moved


_NO_MODULES = cast(fx.GraphModule, None)  # ATen operators are functions


def _read(node: fx.Node) -> list[fx.Node]:
    """The tensors, or lists of such, that a node reads; sizes it reads apart."""
    kinds = (torch.Tensor, list, tuple)
    return [s for s in node.all_input_nodes if isinstance(s.meta.get("val"), kinds)]


def _put_behind(graph: fx.Graph, read: fx.Node, node: fx.Node) -> fx.Node:
    """Quantizes ``read`` as ``node`` does, for what ``node`` depends on."""
    user = cast(fx.Node, node.args[0])
    with graph.inserting_before(user):
        quantized = graph.call_function(ACTIVATION, (read, node.args[1]))
    quantized.meta = {**node.meta, "val": read.meta["val"]}
    user.replace_input_with(read, quantized)
    return quantized


def _does_nothing(source: fx.Node, quantizer: ActivationQuantizer) -> bool:
    """Whether the levels end where the activation function cuts, or before."""
    low, high = _ends(source)
    scale, zero = float(quantizer.scale), float(quantizer.zero_point)
    below = math.isinf(low) or round(low / scale) + zero <= 0
    return below and (math.isinf(high) or round(high / scale) + zero >= levels(quantizer.bits))


def _ends(source: fx.Node) -> tuple[float, float]:
    kind = kind_of(_NO_MODULES, source)
    if kind == "relu":
        return 0.0, math.inf
    values: list[Any] = [*source.args[1:], None, None]
    low, high = values[0], values[1]
    if kind == "hardtanh" and len(source.args) == 1:
        low, high = -1.0, 1.0
    ends = (-math.inf if low is None else low), (math.inf if high is None else high)
    numbers = all(isinstance(end, int | float) for end in ends)
    return cast(tuple[float, float], ends) if numbers else (math.nan, math.nan)


def grid_of(node: fx.Node, grids: dict[fx.Node, str]) -> str | None:
    """The path of the quantizer on whose levels the value of ``node`` lies, if all that it moves or
    chooses among lies there."""
    if node.op != "call_function" or not passes(_NO_MODULES, node):
        return None
    found = {grids.get(source) for source in _read(node)}
    return found.pop() if len(found) == 1 else None
