"""What the operators of a graph do with integers: for placing quantizers."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch._ops import OpOverload

__all__ = ["calculates", "is_fused", "kind_of", "passes", "values_of_images"]

_JOINS = "cat concat concatenate stack hstack vstack dstack column_stack"
_PASSES = """
max_pool1d max_pool2d max_pool3d MaxPool1d MaxPool2d MaxPool3d adaptive_max_pool1d
adaptive_max_pool2d adaptive_max_pool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d amax
flatten Flatten reshape reshape_as view view_as _unsafe_view unflatten Unflatten ravel permute
transpose swapaxes swapdims movedim moveaxis t squeeze unsqueeze contiguous clone alias detach chunk
split split_with_sizes tensor_split unbind narrow slice select index_select flip roll expand
expand_as repeat tile broadcast_to channel_shuffle ChannelShuffle pixel_shuffle PixelShuffle
pixel_unshuffle PixelUnshuffle upsample_nearest UpsamplingNearest2d ZeroPad2d
"""
_FUSED = "relu ReLU relu6 ReLU6 hardtanh Hardtanh clamp clamp_min clip"
_PAIRS = "add sub mul subtract multiply matmul bmm"
_AVERAGES = """
avg_pool1d avg_pool2d avg_pool3d AvgPool1d AvgPool2d AvgPool3d adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d AdaptiveAvgPool1d
AdaptiveAvgPool2d AdaptiveAvgPool3d mean
"""
_NO_VALUES = "size getattr dim numel argmax argmin eq ne lt le gt ge"


def kind_of(module: fx.GraphModule, node: fx.Node) -> str:
    """The name of what a node calls, without library or overload: ``add``, ``AvgPool2d``."""
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))).__name__
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    target: Any = node.target
    return str((target.overloadpacket if isinstance(target, OpOverload) else target).__name__)


def values_of_images(module: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose values are computed from images, sizes and comparisons apart."""
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        computed = not found.isdisjoint(node.all_input_nodes)
        if node.op == "placeholder" or (
            computed and kind_of(module, node) not in _NO_VALUES.split()
        ):
            found.add(node)
    return found


def passes(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether it moves or chooses among values and computes none: their scale is its scale."""
    kind = kind_of(module, node)
    if kind == "getitem":  # a slice, or one of several results
        source, index = node.args
        return not isinstance(index, int) or passes(module, source)  # type: ignore[arg-type]
    return kind in _PASSES.split() or kind in _JOINS.split()


def is_fused(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether it is an activation function that a device applies before it rounds."""
    return kind_of(module, node) in _FUSED.split()


def calculates(module: fx.GraphModule, node: fx.Node, images: set[fx.Node]) -> bool:
    """Whether it is arithmetic that a device does in integers, but for weight layers: sums and
    products of values, averages."""
    kind = kind_of(module, node)
    return kind in _AVERAGES.split() or (
        kind in _PAIRS.split() and sum(a in images for a in node.args) > 1
    )
