"""Convolutions, products, attention and normalisation in ONNX."""

from __future__ import annotations

import math
from typing import Any

import torch

from modcap.export.onnx_call import Call, Size, operator
from modcap.export.onnx_graph import Graph

aten = torch.ops.aten


@operator(aten.convolution.default)
def convolution(graph: Graph, call: Call) -> str:
    inputs = [call.name("input"), call.name("weight")]
    if call["bias"] is not None:
        inputs.append(call.name("bias"))
    attributes: dict[str, Any] = {
        "strides": list(call["stride"]),
        "pads": [*call["padding"], *call["padding"]],
        "dilations": list(call["dilation"]),
        "group": call["groups"],
    }
    if call["transposed"]:
        attributes["output_padding"] = list(call["output_padding"])
    given = {name: value for name, value in attributes.items() if not _is_usual(name, value)}
    return graph.add("ConvTranspose" if call["transposed"] else "Conv", *inputs, **given)


def _is_usual(name: str, value: Any) -> bool:
    """Whether an attribute says what its absence says: in small files these count."""
    usual = 0 if name in ("pads", "output_padding") else 1
    return all(one == usual for one in (value if isinstance(value, list) else [value]))


@operator(aten.linear.default)
def linear(graph: Graph, call: Call) -> str:
    """Always ``Gemm``, over rows: what onnxruntime makes of ``MatMul`` over low-bit weights rounds
    the other factor, too."""
    x, shape = call.name("input"), call.shape
    if len(shape) != 2:
        x = call.reshape(x, (-1, shape_end(call, "input")))
    biases = [] if call["bias"] is None else [call.name("bias")]
    y = graph.add("Gemm", x, call.name("weight"), *biases, transB=1)
    return y if len(shape) == 2 else call.reshape(y, shape)


def shape_end(call: Call, argument: str) -> int:
    """The size of the last dimension."""
    (size,) = call.sizes_of(argument, -1)
    return size


@operator(aten.matmul.default, aten.mm.default, aten.bmm.default)
def matmul(graph: Graph, call: Call) -> str:
    second = "other" if "matmul" in str(call.node.target) else "mat2"
    return graph.add("MatMul", call.name("self"), call.name(second))


@operator(aten.addmm.default, aten.baddbmm.default)
def addmm(graph: Graph, call: Call) -> str:
    if (call["alpha"], call["beta"]) != (1, 1):
        raise call.refused("with factors")
    first, second = [n for n in ("mat1", "batch1", "mat2", "batch2") if n in call]
    product = graph.add("MatMul", call.name(first), call.name(second))
    return graph.add("Add", product, call.name("self"))


@operator(aten.scaled_dot_product_attention.default)
def attention(graph: Graph, call: Call) -> str:
    if call["is_causal"] or call["dropout_p"]:
        raise call.refused("causal, or with dropout")
    scale = call["scale"] or 1 / math.sqrt(shape_end(call, "query"))
    ndim = len(call.shape_of("key"))
    turned = [*range(ndim - 2), ndim - 1, ndim - 2]
    keys = graph.add("Transpose", call.name("key"), perm=turned)
    query = graph.add("Mul", call.name("query"), graph.constant(scale))
    scores = graph.add("MatMul", query, keys)
    if call["attn_mask"] is not None:
        scores = graph.add("Add", scores, _mask(graph, call))
    return graph.add("MatMul", graph.add("Softmax", scores, axis=-1), call.name("value"))


def _mask(graph: Graph, call: Call) -> str:
    mask = call.name("attn_mask")
    if call["attn_mask"].meta["val"].dtype != torch.bool:
        return mask
    return graph.add("Where", mask, graph.constant(0.0), graph.constant(-math.inf))


@operator(aten._native_batch_norm_legit_no_training.default)
def batch_norm(graph: Graph, call: Call) -> list[str]:
    (channels, *_) = call.sizes_of("input", 1)
    ones, zeros = torch.ones(channels), torch.zeros(channels)
    scale = graph.constant(ones) if call["weight"] is None else call.name("weight")
    shift = graph.constant(zeros) if call["bias"] is None else call.name("bias")
    statistics = call.name("running_mean"), call.name("running_var")
    inputs = call.name("input"), scale, shift, *statistics
    return [graph.add("BatchNormalization", *inputs, epsilon=call["eps"])]


@operator(aten.native_layer_norm.default)
def layer_norm(graph: Graph, call: Call) -> list[str]:
    count = len(call["normalized_shape"])
    y = standardized(graph, call.name("input"), list(range(-count, 0)), call["eps"])
    return [_scaled(graph, call, y, None)]


@operator(aten.native_group_norm.default)
def group_norm(graph: Graph, call: Call) -> list[str]:
    shape, groups = call.shape_of("input"), call["group"]
    channels, *sizes = call.sizes_of("input", 1)
    inner = channels * math.prod(sizes) // groups
    x = call.reshape(call.name("input"), (shape[0], groups, inner))
    y = call.reshape(standardized(graph, x, [2], call["eps"]), shape)
    return [_scaled(graph, call, y, (channels, *[1] * len(sizes)))]


def standardized(graph: Graph, x: str, axes: list[int], epsilon: float) -> str:
    """x with mean 0 and variance 1 over ``axes``."""
    centred = graph.add("Sub", x, reduced(graph, "ReduceMean", x, axes))
    variance = reduced(graph, "ReduceMean", graph.add("Mul", centred, centred), axes)
    deviation = graph.add("Sqrt", graph.add("Add", variance, graph.constant(epsilon)))
    return graph.add("Div", centred, deviation)


def _scaled(graph: Graph, call: Call, y: str, shape: tuple[Size, ...] | None) -> str:
    for kind, argument in (("Mul", "weight"), ("Add", "bias")):
        if call[argument] is not None:
            by = call.name(argument)
            y = graph.add(kind, y, call.reshape(by, shape) if shape else by)
    return y


def reduced(graph: Graph, kind: str, x: str, axes: list[int], keep: bool = True) -> str:
    """x reduced over ``axes``, which are an input of the sum since opset 13, of others since 18."""
    if graph.opset >= 18 or kind == "ReduceSum":
        return graph.add(kind, x, graph.constant(torch.tensor(axes)), keepdims=int(keep))
    return graph.add(kind, x, axes=axes, keepdims=int(keep))
