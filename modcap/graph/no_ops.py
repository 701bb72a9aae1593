"""What does nothing in eval mode, such as dropout, is taken out of a graph."""

from __future__ import annotations

from typing import cast

from torch import fx, nn

__all__ = ["drop_no_ops", "is_no_op"]

_LAYERS = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_FUNCTIONS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout")


def drop_no_ops(graph: fx.GraphModule) -> None:
    """Takes them out, in place, and what nothing depends on."""
    for node in list(graph.graph.nodes):
        if is_no_op(graph, node):
            node.replace_all_uses_with(cast(fx.Node, node.args[0]))
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()


def is_no_op(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether ``node`` returns its first argument."""
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), _LAYERS)
    name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
    if name in _FUNCTIONS:
        return not node.kwargs.get("training", len(node.args) > 2 and node.args[2])
    return name == "stochastic_depth" and not node.kwargs.get("training", node.args[-1])
