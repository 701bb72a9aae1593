"""An ONNX graph as it is written: nodes, initializers, names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modcap.export.storage import IR_VERSIONS, storage_bits
from modcap.quantization.affine import levels, middle
from modcap.quantization.bit_packing import pack

__all__ = ["BATCH", "BIAS_BITS", "INPUT", "Encoding", "Graph", "Written"]

INPUT, BATCH = "images", "batch"
BIAS_BITS = 32
_QUANTIZING = ("Max", "Min", "QuantizeLinear", "DequantizeLinear")
_SHORT = {"QuantizeLinear": "Q", "DequantizeLinear": "DQ"}  # in the names of nodes
_TYPES = {
    torch.float32: "FLOAT",
    torch.float64: "DOUBLE",
    torch.int64: "INT64",
    torch.int32: "INT32",
    torch.uint8: "UINT8",
    torch.int8: "INT8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Encoding:
    """What a quantized tensor of the graph is quantized by.

    Attributes:
        name: of the tensor.
        bits: of its integers.
        scale, zero_point: (1,), or (channels,) along ``axis``.
        axis: of a weight's output channels; None for an activation.
    """

    name: str
    bits: int
    scale: Tensor
    zero_point: Tensor
    axis: int | None = None


@dataclass(frozen=True)
class Written:
    """An output of the network, as it was written.

    Attributes:
        name: of the output.
        value: the name of its value in the graph.
        shape: (batch, ...).
    """

    name: str
    value: str
    shape: tuple[int | str, ...]


class Graph:
    """The graph, to which operators add nodes.

    Attributes:
        opset: the version of operators that it is written for.
        place: where in the model the nodes that are added belong.
        encodings: of the quantized tensors, in order.
        fused: made for the 8-bit kernels of onnxruntime, see :mod:`modcap.export.onnx_integers`.
        cuts: (path, computed, given) of each activation that is cut, see :meth:`cut`.
    """

    def __init__(self, opset: int, fused: bool = False) -> None:
        self.opset = opset
        self.fused = fused
        self.place = ""
        self.encodings: list[Encoding] = []
        self.cuts: list[tuple[str, str, str]] = []
        self._nodes: list[Any] = []
        self._initializers: dict[str, Any] = {}
        self._constants: dict[tuple[Any, ...], str] = {}
        self._inputs: list[Any] = []
        self._names: Counter[str] = Counter()

    def _short(self, letter: str) -> str:
        """A new name of few bytes."""
        self._names[letter] += 1
        return f"{letter}{self._names[letter]}"

    def name(self, kind: str) -> str:
        """A new name for something of ``kind`` at the place."""
        name = f"{self.place}/{kind}" if self.place else kind
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}_{self._names[name]}"

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output, and names it; both have one name. What quantizes has short
        names for its values, since it is most of the nodes of a small file."""
        return self.add_many(operator, 1, *inputs, **attributes)[0]

    def add_many(self, operator: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """Adds a node with ``count`` outputs, and names them."""
        from onnx import helper

        name = self.name(_SHORT.get(operator, operator))
        value = self._short("v") if operator in _QUANTIZING else name
        outputs = [value] if count == 1 else [f"{value}:{i}" for i in range(count)]
        self._nodes.append(helper.make_node(operator, inputs, outputs, name=name, **attributes))
        return outputs

    def input(self, name: str, shape: Sequence[int | str]) -> str:
        from onnx import TensorProto, helper

        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def constant(self, values: Tensor | np.ndarray[Any, Any] | Sequence[Any] | float) -> str:
        """The name of an initializer with these values; equal ones are stored once."""
        tensor = torch.as_tensor(values).detach().cpu().contiguous()
        raw = tensor.numpy().tobytes()
        key = (tensor.dtype, tuple(tensor.shape), raw)
        if key not in self._constants:
            kind = _TYPES[tensor.dtype]
            self._constants[key] = self._store_as(self._short("c"), kind, tensor.shape, raw)
        return self._constants[key]

    def cast(self, name: str, dtype: torch.dtype) -> str:
        from onnx import TensorProto

        return self.add("Cast", name, to=getattr(TensorProto, _TYPES[dtype]))

    def batch_size(self, factor: int = 1) -> str:
        """(1,) int64: ``factor`` for each image."""
        shape = self.add("Shape", INPUT)
        size = self.add("Slice", shape, self.constant([0]), self.constant([1]))
        return size if factor == 1 else self.add("Mul", size, self.constant([factor]))

    def cut(self, path: str, computed: str, shape: Sequence[int | str]) -> str:
        """Ends the graph at ``computed`` and goes on from a new input in its place."""
        given = self.input(self.name("given"), shape)
        self.cuts.append((path, self.add("Identity", computed), given))
        return given

    def weight(self, integers: Tensor, encoding: Encoding) -> str:
        """The real values of integers (any shape, uint8), by ``DequantizeLinear``."""
        assert encoding.axis is not None
        self.encodings.append(encoding)
        if self.fused:
            return self._signed_weight(integers, encoding)
        width = storage_bits(encoding.bits, self.opset)
        stored = self._integers(encoding.name, integers, width)
        zero = self._integers(self._short("z"), encoding.zero_point, width)
        scale = self.constant(encoding.scale.float())
        return self.add("DequantizeLinear", stored, scale, zero, axis=encoding.axis)

    def _signed_weight(self, integers: Tensor, encoding: Encoding) -> str:
        """The same as int8 around 0, which is what integer kernels are fast with."""
        raw = (integers.int() - middle(encoding.bits)).to(torch.int8)
        stored = self._store_as(encoding.name, "INT8", raw.shape, raw.numpy().tobytes())
        zero = self.constant(torch.zeros(len(encoding.scale), dtype=torch.int8))
        scale = self.constant(encoding.scale.float())
        return self.add("DequantizeLinear", stored, scale, zero, axis=encoding.axis)

    def bias(self, integers: Tensor, encoding: Encoding) -> str:
        """The real values of 32-bit integers (channels,)."""
        self.encodings.append(encoding)
        raw = integers.contiguous().numpy().tobytes()
        stored = self._store_as(encoding.name, "INT32", integers.shape, raw)
        return self.add("DequantizeLinear", stored, self.constant(encoding.scale.float()), axis=0)

    def activation(self, x: str, encoding: Encoding) -> str:
        """x rounded to its levels, by ``QuantizeLinear`` and ``DequantizeLinear``.

        ``Max`` in front and ``Min`` behind keep it within levels that the type has beyond its
        bits. They stand around all pairs, since onnxruntime (1.32) optimises what stands next to
        one wrongly: with fewer than 8 bits it fails, or drops a ReLU that matters; with 8 bits it
        rounds biases, which changes one class in 300, and is slower. Where all is quantized to 8
        bits, biases too, that is what is wanted, and they are left out.
        """
        self.encodings.append(encoding)
        width = storage_bits(encoding.bits, self.opset)
        scale, steps = encoding.scale.float(), -encoding.zero_point.float()
        low, high = steps * scale, (steps + levels(encoding.bits)) * scale
        pair = self.constant(scale), self._zero_point(encoding.zero_point, width)
        if self.fused:
            return self.add("DequantizeLinear", self.add("QuantizeLinear", x, *pair), *pair)
        above = self.add("Max", x, self.constant(low))
        y = self.add("DequantizeLinear", self.add("QuantizeLinear", above, *pair), *pair)
        return self.add("Min", y, self.constant(high))

    def _zero_point(self, zero_point: Tensor, width: int) -> str:
        key = ("zero point", width, int(zero_point))
        if key not in self._constants:
            self._constants[key] = self._integers(self._short("z"), zero_point, width)
        return self._constants[key]

    def _integers(self, name: str, values: Tensor, width: int) -> str:
        raw = pack(values, width).numpy().tobytes()
        return self._store_as(name, f"UINT{width}", values.shape, raw)

    def _store_as(self, name: str, kind: str, shape: Sequence[int], raw: bytes) -> str:
        from onnx import TensorProto, helper

        made = helper.make_tensor(name, getattr(TensorProto, kind), list(shape), raw, raw=True)
        self._initializers[name] = made
        return name

    def outputs(self, written: Sequence[Written]) -> list[str]:
        """The names that outputs have in the file: their own, and another one where something
        inside has it."""
        taken = {name for node in self._nodes for name in node.output} | self._initializers.keys()
        taken |= {value.name for value in self._inputs}
        found: list[str] = []
        for output in written:
            name = output.name
            while name in taken:
                name += "_"
            taken.add(name)
            found.append(name)
        return found

    def model(self, written: Sequence[Written], metadata: Mapping[str, str]) -> bytes:
        """The file; what was ``written`` becomes its outputs, and so does what is cut."""
        from onnx import TensorProto, helper

        names, nodes = self.outputs(written), [*self._nodes]
        outputs = []
        for name, output in zip(names, written, strict=True):
            nodes.append(helper.make_node("Identity", [output.value], [name], name=name))
            outputs.append(
                helper.make_tensor_value_info(name, TensorProto.FLOAT, list(output.shape))
            )
        for _, computed, _ in self.cuts:
            outputs.append(helper.make_tensor_value_info(computed, TensorProto.FLOAT, None))
        nodes, used = _needed(nodes, {value.name for value in outputs})
        stored = [tensor for name, tensor in self._initializers.items() if name in used]
        graph = helper.make_graph(nodes, "modcap", self._inputs, outputs, stored)
        made = helper.make_model(
            graph,
            producer_name="modcap",
            ir_version=IR_VERSIONS[self.opset],
            opset_imports=[helper.make_opsetid("", self.opset)],
        )
        helper.set_model_props(made, dict(sorted(metadata.items())))
        data: bytes = made.SerializeToString(deterministic=True)
        return data


def _needed(nodes: Sequence[Any], used: set[str]) -> tuple[list[Any], set[str]]:
    """Those nodes that ``used`` depends on, and all that they read."""
    kept, used = [], set(used)
    for node in reversed(nodes):
        if not used.isdisjoint(node.output):
            kept.append(node)
            used.update(node.input)
    return kept[::-1], used
