"""What the nodes of a captured graph are: which have weights, and where they stand."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

__all__ = [
    *("WEIGHT_LAYERS", "hierarchy", "layer_calls", "path_of", "place", "stored_tensor"),
    "weight_layers",
]

WEIGHT_LAYERS = (_ConvNd, nn.Linear)


def weight_layers(module: fx.GraphModule) -> list[fx.Node]:
    """The nodes that first call each convolution and linear layer, in topological order."""
    first: dict[str, fx.Node] = {}
    for node in layer_calls(module):
        first.setdefault(str(node.target), node)
    return list(first.values())


def layer_calls(module: fx.GraphModule) -> list[fx.Node]:
    """The nodes that call a convolution or linear layer, in topological order."""
    return [
        node
        for node in module.graph.nodes
        if node.op == "call_module"
        and isinstance(module.get_submodule(str(node.target)), WEIGHT_LAYERS)
    ]


def hierarchy(node: fx.Node) -> list[tuple[str, str]]:
    """(path, class) of the modules around ``node``, outermost first, the root left out."""
    stack = cast(dict[str, Any], node.meta.get("nn_module_stack") or {})
    found = []
    for path, kind in stack.values():
        name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        if path:
            found.append((path, name))
    return found


def path_of(node: fx.Node) -> str:
    """The dotted path in the model of the layer that ``node`` calls."""
    around = hierarchy(node)
    return around[-1][0] if around else str(node.target)


def place(node: fx.Node) -> str:
    """Where a node stands in the model, for people."""
    around = hierarchy(node)
    return f"'{around[-1][0]}'" if around else f"node '{node.name}'"


def stored_tensor(graph: fx.GraphModule, node: fx.Node) -> Tensor:
    """What ``node``, a ``get_attr`` of ``graph``, fetches."""
    owner, _, name = str(node.target).rpartition(".")
    tensor: Tensor = getattr(graph.get_submodule(owner), name)
    return tensor.detach()
