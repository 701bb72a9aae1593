"""Element by element, and over dimensions: activation functions, arithmetic, reductions in ONNX."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from modcap.export.onnx_call import OPERATORS, Call, Write, operator
from modcap.export.onnx_graph import Graph
from modcap.export.onnx_layers import reduced

aten = torch.ops.aten

_SAME: dict[str, str] = {  # ATen's name to that of the ONNX operator that does the same
    **{"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "erf": "Erf", "exp": "Exp"},
    **{"log": "Log", "sqrt": "Sqrt", "neg": "Neg", "abs": "Abs", "reciprocal": "Reciprocal"},
    **{"floor": "Floor", "ceil": "Ceil", "round": "Round", "sign": "Sign", "sin": "Sin"},
    **{"cos": "Cos", "logical_not": "Not", "bitwise_not": "Not", "isnan": "IsNaN"},
    **{"selu": "Selu", "clone": "Identity", "alias": "Identity", "detach": "Identity"},
    **{"lift_fresh_copy": "Identity"},
}
_PAIRS: dict[str, str] = {
    **{"mul": "Mul", "maximum": "Max", "minimum": "Min", "pow": "Pow", "eq": "Equal"},
    **{"lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual"},
    **{"logical_and": "And", "logical_or": "Or", "logical_xor": "Xor"},
    **{"bitwise_and": "And", "bitwise_or": "Or", "bitwise_xor": "Xor"},
}
_REDUCTIONS = {"mean": "ReduceMean", "sum": "ReduceSum", "amax": "ReduceMax", "amin": "ReduceMin"}


def _unary(kind: str) -> Write:
    return lambda graph, call: graph.add(kind, call.read(call.node.args[0]))


def _pair(kind: str) -> Write:
    return lambda graph, call: graph.add(kind, *_operands(call))


def _operands(call: Call) -> tuple[str, str]:
    first, second = call.node.args[:2]
    values: Any = [v.meta["val"] if isinstance(v, fx.Node) else v for v in (first, second)]
    dtype = torch.result_type(values[0], values[1])
    return call.read(first, dtype), call.read(second, dtype)


for _name, _kind in _SAME.items():
    OPERATORS[getattr(aten, _name).default] = _unary(_kind)
for _name, _kind in _PAIRS.items():
    for _overload in getattr(aten, _name).overloads():
        if _overload in ("Tensor", "Scalar", "default", "Tensor_Scalar", "Tensor_Tensor"):
            OPERATORS[getattr(getattr(aten, _name), _overload)] = _pair(_kind)


@operator(aten.ne.Tensor, aten.ne.Scalar)
def not_equal(graph: Graph, call: Call) -> str:
    return graph.add("Not", graph.add("Equal", *_operands(call)))


@operator(aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar)
def add(graph: Graph, call: Call) -> str:
    first, second = _operands(call)
    kind = "Add" if "add" in str(call.node.target) else "Sub"
    return graph.add(kind, first, _times(graph, second, call["alpha"]))


@operator(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub(graph: Graph, call: Call) -> str:
    first, second = _operands(call)
    return graph.add("Sub", second, _times(graph, first, call["alpha"]))


def _times(graph: Graph, x: str, factor: float) -> str:
    return x if factor == 1 else graph.add("Mul", x, graph.constant(float(factor)))


@operator(aten.div.Tensor, aten.div.Scalar, aten.div.Tensor_mode, aten.div.Scalar_mode)
def div(graph: Graph, call: Call) -> str:
    dtype = call.node.meta["val"].dtype
    quotient = graph.add("Div", *(call.read(value, dtype) for value in call.node.args[:2]))
    mode = call.node.kwargs.get("rounding_mode")
    if mode is None:
        return quotient
    if mode != "floor" or not dtype.is_floating_point:
        raise call.refused(f"rounding mode {mode}")
    return graph.add("Floor", quotient)


@operator(aten.where.self)
def where(graph: Graph, call: Call) -> str:
    dtype = call.node.meta["val"].dtype
    values = call.read(call["self"], dtype), call.read(call["other"], dtype)
    return graph.add("Where", call.name("condition"), *values)


@operator(aten._to_copy.default)
def to_copy(graph: Graph, call: Call) -> str:
    return call.read(call["self"], call.node.meta["val"].dtype)


@operator(aten.rsqrt.default)
def rsqrt(graph: Graph, call: Call) -> str:
    return graph.add("Reciprocal", graph.add("Sqrt", call.name("self")))


@operator(aten.log1p.default)
def log1p(graph: Graph, call: Call) -> str:
    return graph.add("Log", graph.add("Add", call.name("self"), graph.constant(1.0)))


@operator(aten.clamp.default, aten.hardtanh.default, aten.clamp_min.default, aten.clamp_max.default)
def clip(graph: Graph, call: Call) -> str:
    names = ("min_val", "max_val") if "hardtanh" in str(call.node.target) else ("min", "max")
    ends = [call.get(name) for name in names]
    if not call.node.meta["val"].is_floating_point():
        raise call.refused("of integers")
    inputs = ["" if end is None else graph.constant(float(end)) for end in ends]
    return graph.add("Clip", call.name("self"), *inputs)


@operator(aten.hardsigmoid.default)
def hard_sigmoid(graph: Graph, call: Call) -> str:
    return graph.add("HardSigmoid", call.name("self"), alpha=1 / 6, beta=0.5)


@operator(aten.hardswish.default)
def hard_swish(graph: Graph, call: Call) -> str:
    x = call.name("self")
    return graph.add("Mul", x, graph.add("HardSigmoid", x, alpha=1 / 6, beta=0.5))


@operator(aten.silu.default)
def silu(graph: Graph, call: Call) -> str:
    return graph.add("Mul", call.name("self"), graph.add("Sigmoid", call.name("self")))


@operator(aten.gelu.default)
def gelu(graph: Graph, call: Call) -> str:
    x = call.name("self")
    if call["approximate"] == "tanh":
        cubic = graph.add("Mul", graph.add("Mul", x, x), graph.constant(0.044715))
        inner = graph.add("Mul", x, graph.add("Add", cubic, graph.constant(1.0)))
        bent = graph.add("Tanh", _times(graph, inner, math.sqrt(2 / math.pi)))
    else:
        bent = graph.add("Erf", graph.add("Div", x, graph.constant(math.sqrt(2))))
    return _times(graph, graph.add("Mul", x, graph.add("Add", bent, graph.constant(1.0))), 0.5)


@operator(aten.elu.default)
def elu(graph: Graph, call: Call) -> str:
    if call["input_scale"] != 1:
        raise call.refused("with an input scale")
    bent = graph.add("Elu", call.name("self"), alpha=float(call["alpha"]))
    return _times(graph, bent, call["scale"])


@operator(aten.leaky_relu.default)
def leaky_relu(graph: Graph, call: Call) -> str:
    return graph.add("LeakyRelu", call.name("self"), alpha=float(call["negative_slope"]))


@operator(aten.prelu.default)
def prelu(graph: Graph, call: Call) -> str:
    (slopes,) = call.sizes_of("weight", 0)
    after = len(call.shape_of("self")) - 2
    slope = call.reshape(call.name("weight"), (slopes, *[1] * max(after, 0)))
    return graph.add("PRelu", call.name("self"), slope)


@operator(aten.softplus.default)
def softplus(graph: Graph, call: Call) -> str:
    beta = float(call["beta"])
    return _times(graph, graph.add("Softplus", _times(graph, call.name("self"), beta)), 1 / beta)


@operator(aten._softmax.default, aten._log_softmax.default)
def softmax(graph: Graph, call: Call) -> str:
    kind = "LogSoftmax" if "log" in str(call.node.target) else "Softmax"
    return graph.add(kind, call.name("self"), axis=call["dim"])


@operator(*(aten.mean.default, aten.mean.dim, aten.sum.default, aten.sum.dim_IntList))
@operator(aten.amax.default, aten.amin.default)
def reduce(graph: Graph, call: Call) -> str:
    kind = _REDUCTIONS[call.node.target.overloadpacket.__name__]  # type: ignore[union-attr]
    x = call.read(call["self"], call.node.meta["val"].dtype)  # sums of truth values are integers
    return reduced(graph, kind, x, _axes(call), _keeps(call))


@operator(aten.any.default, aten.any.dim, aten.any.dims)
def any_(graph: Graph, call: Call) -> str:
    x = call.read(call["self"], torch.float32)
    largest = reduced(graph, "ReduceMax", graph.add("Abs", x), _axes(call), _keeps(call))
    return graph.cast(largest, torch.bool)


@operator(aten.var.correction, aten.var.dim)
def variance(graph: Graph, call: Call) -> str:
    axes, x = _axes(call), call.name("self")
    sizes = [call.shape_of("self")[axis] for axis in axes]
    if not all(isinstance(size, int) for size in sizes):
        raise call.refused("it works across images")
    count = math.prod(int(size) for size in sizes)
    correction: Any = call["correction"] if "correction" in call else int(call["unbiased"])
    centred = graph.add("Sub", x, reduced(graph, "ReduceMean", x, axes))
    mean = reduced(graph, "ReduceMean", graph.add("Mul", centred, centred), axes, _keeps(call))
    return _times(graph, mean, count / (count - (1 if correction is None else correction)))


@operator(aten.linalg_vector_norm.default)
def vector_norm(graph: Graph, call: Call) -> str:
    kinds = {1: "ReduceL1", 2: "ReduceL2"}
    if call["ord"] not in kinds:
        raise call.refused(f"of order {call['ord']}")
    return reduced(graph, kinds[call["ord"]], call.name("self"), _axes(call), _keeps(call))


def _axes(call: Call) -> list[int]:
    dims = call.get("dim")
    everything = list(range(len(call.shape_of("self"))))
    return [dims] if isinstance(dims, int) else list(dims or everything)


def _keeps(call: Call) -> bool:
    return bool(call.get("keepdim"))
