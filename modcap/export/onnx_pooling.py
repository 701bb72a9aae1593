"""Pooling and resizing in ONNX."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modcap.export.onnx_call import Call, operator
from modcap.export.onnx_graph import Graph

aten = torch.ops.aten
_AVERAGES: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@operator(*(getattr(aten, f"max_pool{d}d").default for d in (1, 2, 3)))
def max_pool(graph: Graph, call: Call) -> str:
    dims = len(call.shape) - 2
    kernel, strides, pads = _windows(call, dims)
    dilations = _each(call["dilation"], dims)
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    after = _overhang(call, reach, strides, pads)
    return graph.add(
        "MaxPool",
        call.name("self"),
        kernel_shape=kernel,
        strides=strides,
        dilations=dilations,
        pads=pads + [max(0, n) for n in after],
    )


@operator(*(getattr(aten, f"avg_pool{d}d").default for d in (1, 2, 3)))
def average_pool(graph: Graph, call: Call) -> str:
    """The average over zero-padded windows, times what torch's divisor makes of it.

    Runtimes differ in what they divide by at the edges (``ceil_mode``, ``count_include_pad``), and
    ONNX has no ``divisor_override``: so the padding is a node of its own, and the divisor a factor.
    """
    dims = len(call.shape) - 2
    kernel, strides, pads = _windows(call, dims)
    sizes = call.sizes_of("self", 2)
    after = [max(0, n) for n in _overhang(call, kernel, strides, pads)]
    x = call.name("self")
    if any(pads + after):
        zeros = [0, 0, *pads, 0, 0, *after]
        x = graph.add("Pad", x, graph.constant(torch.tensor(zeros)), graph.constant(0.0))
    y = graph.add("AveragePool", x, kernel_shape=kernel, strides=strides)
    factor = _divisors(call, dims, torch.ones(1, 1, *sizes), kernel, strides, pads, after)
    if bool((factor == 1).all()):
        return y
    one = factor if len(factor.unique()) > 1 else factor.max()
    return graph.add("Mul", y, graph.constant(one))


def _divisors(
    call: Call,
    dims: int,
    ones: Tensor,
    kernel: list[int],
    strides: list[int],
    pads: list[int],
    after: list[int],
) -> Tensor:
    """torch's average of ones over that of the zero-padded ones (1, 1, …)."""
    given: dict[str, Any] = {n: call[n] for n in ("ceil_mode", "count_include_pad")}
    if dims > 1:
        given["divisor_override"] = call["divisor_override"]
    wanted = _AVERAGES[dims](ones, kernel, strides, pads, **given)
    around = [n for pair in zip(pads[::-1], after[::-1], strict=True) for n in pair]
    plain = _AVERAGES[dims](F.pad(ones, around), kernel, strides)
    quotient: Tensor = wanted / plain
    return quotient


def _windows(call: Call, dims: int) -> tuple[list[int], list[int], list[int]]:
    kernel = _each(call["kernel_size"], dims)
    return kernel, _each(call["stride"] or kernel, dims), _each(call["padding"], dims)


def _each(value: Any, dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


def _overhang(call: Call, reach: list[int], strides: list[int], pads: list[int]) -> list[int]:
    """How far the last window reaches beyond the image, in each dimension."""
    rows = zip(call.shape[2:], strides, reach, pads, call.sizes_of("self", 2), strict=True)
    return [(int(out) - 1) * s + r - p - size for out, s, r, p, size in rows]


@operator(*(getattr(aten, f"adaptive_avg_pool{d}d").default for d in (1, 2, 3)))
@operator(aten._adaptive_avg_pool2d.default)
def adaptive_average_pool(graph: Graph, call: Call) -> str:
    """Windows of unequal size are a product with a fixed matrix, in each dimension."""
    x, sizes = call.name("self"), call.sizes_of("self", 2)
    outs = [int(size) for size in call.shape[2:]]
    if set(outs) == {1}:
        return graph.add("GlobalAveragePool", x)
    if not any(size % out for size, out in zip(sizes, outs, strict=True)):
        kernel = [size // out for size, out in zip(sizes, outs, strict=True)]
        return graph.add("AveragePool", x, kernel_shape=kernel, strides=kernel)
    if len(sizes) > 2:
        raise call.refused("windows of unequal size in 3 dimensions")
    x = graph.add("MatMul", x, graph.constant(_averages(sizes[-1], outs[-1]).T))
    if len(sizes) == 1:
        return x
    return graph.add("MatMul", graph.constant(_averages(sizes[0], outs[0])), x)


def _averages(size: int, out: int) -> Tensor:
    """(out, size): what adaptive pooling does along one dimension."""
    return F.adaptive_avg_pool1d(torch.eye(size)[None], out)[0].T.contiguous()


@operator(*(getattr(aten, f"adaptive_max_pool{d}d").default for d in (1, 2, 3)))
def adaptive_max_pool(graph: Graph, call: Call) -> list[str]:
    sizes, outs = call.sizes_of("self", 2), [int(size) for size in call.shape[2:]]
    if any(size % out for size, out in zip(sizes, outs, strict=True)):
        raise call.refused("windows of unequal size")
    kernel = [size // out for size, out in zip(sizes, outs, strict=True)]
    return [graph.add("MaxPool", call.name("self"), kernel_shape=kernel, strides=kernel)]


@operator(aten.upsample_nearest2d.vec, aten.upsample_nearest1d.vec)
def nearest(graph: Graph, call: Call) -> str:
    way = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return _resized(graph, call, mode="nearest", **way)


@operator(aten.upsample_bilinear2d.vec, aten.upsample_linear1d.vec)
def linear(graph: Graph, call: Call) -> str:
    way = "align_corners" if call["align_corners"] else "half_pixel"
    return _resized(graph, call, mode="linear", coordinate_transformation_mode=way)


def _resized(graph: Graph, call: Call, **attributes: str) -> str:
    sizes = call.dynamic((call.shape_of("input")[0], *call.shape[1:]))
    return graph.add("Resize", call.name("input"), "", "", sizes, **attributes)
