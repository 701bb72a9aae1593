"""What a graph computes of parameters and numbers alone is computed once, and stored.

Standardised weights, biases put together of parts, tables of relative positions are the same for
all images; stored, a convolution over them is a layer as any other.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from modcap.graph.leaves import LEAVES
from modcap.graph.nodes import WEIGHT_LAYERS
from modcap.graph.operators import METHODS, function_names

__all__ = ["drop_checks", "fold_constants"]

SOURCES = "parameters that were folded"  # in a graph's meta: name of what was stored to its origin
_PLAIN = (bool, int, float, torch.dtype, torch.device)
_LARGEST = 2**28  # elements of what is stored
_CHECKS = ("_assert", "_assert_async", "_assert_scalar", "_assert_tensor_metadata")


def drop_checks(graph: fx.GraphModule) -> None:
    """Takes assertions out, in place: they held for the images that were given."""
    for node in reversed(graph.graph.nodes):
        packet = getattr(node.target, "overloadpacket", node.target)
        name = getattr(packet, "__name__", "")
        if node.op == "call_function" and not node.users and name in _CHECKS:
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def fold_constants(graph: fx.GraphModule, kept: tuple[Any, ...]) -> None:
    """Computes, in place, whatever depends on stored tensors and numbers alone.

    Layers stay, and so do calls of ``kept``, which become layers.
    """
    folder = _Folder(graph, kept)
    folder.run()
    for node in list(graph.graph.nodes):
        if node.op in ("get_attr", "output") or node not in folder.values:
            continue
        if any(user not in folder.values for user in node.users):
            _put(graph, node, folder.values[node], folder.origins.get(node, ""))
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _put(graph: fx.GraphModule, node: fx.Node, value: Any, origin: str) -> None:
    """Puts ``value`` in the place of ``node``, where a graph can hold it."""
    if _is_plain(value):
        for user in list(node.users):
            user.args = fx.map_arg(user.args, lambda n: value if n is node else n)
            user.kwargs = fx.map_arg(user.kwargs, lambda n: value if n is node else n)
        return
    if not isinstance(value, Tensor):
        return
    name = f"computed_{node.name}"
    while hasattr(graph, name):
        name += "_"
    stored = value.detach().clone(memory_format=torch.contiguous_format)
    if origin:
        graph.register_parameter(name, nn.Parameter(stored, requires_grad=False))
        graph.meta.setdefault(SOURCES, {})[name] = origin
    else:
        graph.register_buffer(name, stored)
    with graph.graph.inserting_before(node):
        fetched = graph.graph.get_attr(name)
    fetched.meta = {**node.meta, "batched": False, "ndim": stored.ndim}
    node.replace_all_uses_with(fetched)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return isinstance(value, _PLAIN)


class _Folder:
    """Runs what is constant of a graph.

    Attributes:
        values: of each constant node.
        origins: a parameter that it depends on.
    """

    def __init__(self, graph: fx.GraphModule, kept: tuple[Any, ...]) -> None:
        self._graph, self._kept = graph, kept
        self._runner = fx.Interpreter(graph)
        self._parameters = dict(graph.named_parameters(remove_duplicate=False))
        self.values: dict[fx.Node, Any] = {}
        self.origins: dict[fx.Node, str] = {}

    @torch.no_grad()
    def run(self) -> None:
        for node in self._graph.graph.nodes:
            known = all(source in self.values for source in node.all_input_nodes)
            if known and self._is_foldable(node):
                self._evaluate(node)

    def _evaluate(self, node: fx.Node) -> None:
        self._runner.env = dict(self.values)
        value = self._runner.run_node(node)
        if isinstance(value, Tensor) and (value.numel() > _LARGEST or value.is_complex()):
            return
        self.values[node] = value
        origins = [self.origins[s] for s in node.all_input_nodes if s in self.origins]
        if node.op == "get_attr" and node.target in self._parameters:
            origins = [str(node.target)]
        if node.op == "call_module":
            origins += [f"{node.target}.{name}" for name, _ in self._layer(node).named_parameters()]
        if origins:
            self.origins[node] = origins[0]

    def _layer(self, node: fx.Node) -> nn.Module:
        return self._graph.get_submodule(str(node.target))

    def _is_foldable(self, node: fx.Node) -> bool:
        """Whether ``node`` gives the same value, and leaves all others, whenever it is run."""
        if node.op == "call_module":
            layer = self._layer(node)
            return type(layer).__name__ in LEAVES and not isinstance(layer, WEIGHT_LAYERS)
        if node.op == "call_method":
            return node.target in METHODS
        if node.op != "call_function":
            return node.op == "get_attr"
        if node.target in self._kept:
            return False
        if isinstance(node.target, OpOverload):
            seeded = torch.Tag.nondeterministic_seeded in node.target.tags
            return not seeded and not node.target._schema.is_mutable
        return node.target is getattr or cast(Any, node.target) in function_names()
