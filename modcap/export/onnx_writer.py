"""From an artifact to an ONNX graph: its ATen operators one after another.

What depends on no image (tables of places, say) is computed here and stored.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_unflatten

from modcap.export import onnx_elementwise, onnx_layers, onnx_pooling, onnx_shapes
from modcap.export.artifact import QuantizedNetwork
from modcap.export.lowering import ACTIVATION, BIAS, WEIGHT, lower
from modcap.export.onnx_call import OPERATORS, Call
from modcap.export.onnx_graph import BATCH, BIAS_BITS, INPUT, Encoding, Graph, Written
from modcap.export.onnx_integers import around_calculations, grid_of, suits_integer_kernels
from modcap.quantization.layers import ActivationQuantizer, QuantLayer, integer_bias

__all__ = ["WRITERS", "Lowered", "write"]

WRITERS = (onnx_elementwise, onnx_layers, onnx_pooling, onnx_shapes)
"""The modules that fill :data:`modcap.export.onnx_call.OPERATORS`."""


class Lowered:
    """An artifact's network, and its graph of ATen operators: made once, written often."""

    def __init__(self, network: QuantizedNetwork) -> None:
        self.network = network
        self.program: ExportedProgram = lower(network, OPERATORS)
        self.for_integer_kernels = suits_integer_kernels(network)

    def quantizer(self, path: str) -> ActivationQuantizer:
        return cast(ActivationQuantizer, self.network.get_submodule(path))

    def written(self, values: Sequence[str]) -> list[Written]:
        """The outputs of the network, in its order, of which the program's are ``values``."""
        (output,) = self.program.graph.find_nodes(op="output")
        shapes: list[tuple[int | str, ...]] = [
            (BATCH, *map(int, node.meta["val"].shape[1:])) for node in output.args[0]
        ]
        found = tree_unflatten(range(len(values)), self.program.call_spec.out_spec)
        if not isinstance(found, dict):
            name = "logits" if len(shapes[0]) == 2 else "output"
            return [Written(name, values[0], shapes[0])]
        return [
            Written(o.name, values[i := found[o.name]], shapes[i]) for o in self.network.outputs
        ]


def write(lowered: Lowered, opset: int, cut: bool = False) -> tuple[Graph, list[Written]]:
    """The graph, and the outputs of the network in it.

    Args:
        lowered: what is written.
        opset: of the operators.
        cut: begin anew at the input of every activation quantizer, see :meth:`Graph.cut`.

    Raises:
        InputError: an operator has no ONNX form; the line names it and its place.
    """
    graph = Graph(opset, fused=lowered.for_integer_kernels and not cut)
    return graph, lowered.written(_Writer(graph, lowered, cut).run())


class _Writer:
    def __init__(self, graph: Graph, lowered: Lowered, cut: bool) -> None:
        self.graph, self.network, self.program = graph, lowered.network, lowered.program
        self.lowered, self.cut = lowered, cut
        self.values: dict[fx.Node, Any] = {}
        self.nodes = self.program.graph
        if graph.fused:
            self.nodes = around_calculations(self.program.graph, lowered.quantizer)
        self.grids: dict[fx.Node, str] = {}

    def run(self) -> list[str]:
        stored = {**self.program.state_dict, **self.program.constants}
        inputs = self.nodes.find_nodes(op="placeholder")
        for node, spec in zip(inputs, self.program.graph_signature.input_specs, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                self.values[node] = self.graph.input(INPUT, [BATCH, *self.network.input_shape])
            else:
                self.values[node] = stored[cast(str, spec.target)].detach()
        for node in self.nodes.nodes:
            if node.op == "call_function":
                self.graph.place = self._place(node)
                self.values[node] = self._written(node)
                if self.graph.fused:
                    self._keep_on_grid(node)
        self.graph.place = ""
        (output,) = self.nodes.find_nodes(op="output")
        return [self.values[node] for node in output.args[0]]

    def _place(self, node: fx.Node) -> str:
        """The module of the model, and the layer in it: ``features.3/conv_1``."""
        paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        found = re.match(r"chain\.(\d+)\.?(.*)", paths[-1]) if paths else None
        if found is None:
            return self.graph.place.partition("/")[0]
        name = self.network.names[int(found[1])]
        layer = found[2].removesuffix(".layer").removeprefix(name.replace(".", "_")).strip("_")
        return f"{name}/{layer}" if layer else name

    def _written(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            source, index = cast(tuple[fx.Node, int], node.args)
            values = self.values[source]
            return values[index] if isinstance(values, list | tuple) else None
        if node.target is WEIGHT:
            return self._weight(node)
        if node.target is BIAS:
            return self._bias(node)
        if node.target is ACTIVATION:
            return self._activation(node)
        number = isinstance(node.meta.get("val"), torch.SymInt | int)
        if number or not isinstance(node.target, OpOverload) or not node.users:
            return None  # sizes are read off shapes
        if all(isinstance(self.values[source], Tensor) for source in node.all_input_nodes):
            return self._computed(node)
        call = Call(self.graph, node, self.values)
        if node.target not in OPERATORS:
            raise call.refused("it is not on the list")
        return OPERATORS[node.target](self.graph, call)

    def _computed(self, node: fx.Node) -> Any:
        def value(source: fx.Node) -> Any:
            return self.values[source]

        with torch.no_grad():
            arguments = fx.map_arg((node.args, node.kwargs), value)
            return cast(OpOverload, node.target)(*arguments[0], **arguments[1])

    def _weight(self, node: fx.Node) -> str:
        layer = cast(QuantLayer, self.network.get_submodule(str(node.args[1])))
        assert layer.integers is not None
        name = self.graph.name("weight")
        encoding = Encoding(name, layer.bits, layer.scale, layer.zero_point, layer.axis)
        return self.graph.weight(layer.integers, encoding)

    def _bias(self, node: fx.Node) -> str:
        layer = cast(QuantLayer, self.network.get_submodule(str(node.args[1])))
        unit = layer.bias_unit()
        integers = integer_bias(cast(Tensor, layer.layer.bias), unit).int()
        name = self.graph.name("bias")
        encoding = Encoding(name, BIAS_BITS, unit, torch.zeros_like(layer.zero_point), 0)
        return self.graph.bias(integers, encoding)

    def _keep_on_grid(self, node: fx.Node) -> None:
        """Quantizes what was moved or chosen among integers, which it then is done to."""
        path = grid_of(node, self.grids)
        if path is None or self.values[node] is None:
            return
        self.grids[node] = path
        if node.target is operator.getitem:
            return  # of a list whose parts are quantized
        value = self.values[node]
        if isinstance(value, list):
            self.values[node] = [self._quantized(each, path) for each in value]
        else:
            self.values[node] = self._quantized(value, path)

    def _quantized(self, x: str, path: str) -> str:
        quantizer = self.lowered.quantizer(path)
        found = quantizer.scale.detach(), quantizer.zero_point
        return self.graph.activation(x, Encoding(x, quantizer.bits, *found))

    def _activation(self, node: fx.Node) -> str:
        path = str(node.args[1])
        self.grids[node] = path
        source = cast(fx.Node, node.args[0])
        x = Call(self.graph, node, self.values).read(source)
        self.graph.place = self.graph.place.partition("/")[0]
        if self.cut:
            x = self.graph.cut(path, x, [str(size) for size in source.meta["val"].shape])
        return self._quantized(x, path)
