"""Folding: a batch norm behind a convolution or linear layer becomes part of it."""

from __future__ import annotations

from collections import Counter
from typing import cast

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

__all__ = ["fold_batch_norms"]


def fold_batch_norms(graph: fx.GraphModule) -> fx.GraphModule:
    """Folds, in place, each batch norm that alone reads a layer's output.

    Others, such as those in front of a convolution (DenseNet), or behind a layer that is called
    more than once, stay as they are.
    """
    calls = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    for node in list(graph.graph.nodes):
        if node.op != "call_module":
            continue
        norm = graph.get_submodule(str(node.target))
        source = cast(fx.Node, node.args[0])
        if not isinstance(norm, _BatchNorm) or source.op != "call_module" or len(source.users) > 1:
            continue
        if calls[str(source.target)] > 1:
            continue
        layer = graph.get_submodule(str(source.target))
        if isinstance(layer, nn.Linear) and source.meta["ndim"] != 2:
            continue  # the norm is over tokens, not over the layer's outputs
        fused = _fused(layer, norm)
        if fused is None:
            continue
        graph.set_submodule(str(source.target), fused.requires_grad_(False))
        node.replace_all_uses_with(source)
        graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def _fused(layer: nn.Module, norm: _BatchNorm) -> nn.Module | None:
    if norm.running_mean is None:  # statistics of the batch: nothing fixed to fold
        return None
    if isinstance(layer, _ConvNd):
        return fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, _ConvTransposeNd))
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, norm)
    return None
