"""Partition: a captured network becomes a chain of modules, with no list of names.

A *cut point* is a place in topological order where exactly one value is alive, and before which
no layer was called that is called after it: a shared weight belongs to one module. A *composite* is
a module of the model's own hierarchy with at least two weight layers, its class outside
``torch.nn``. A composite is a *block* when its class occurs more than once and it is no *stage*; a
stage holds two or more composites of one class between cut points. Cut points inside a block are
passed over: an inverted residual without shortcut stays one module, while a wrapper around a whole
backbone, or a stage of blocks, does not. What lies between two remaining cut points is one module.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, fx
from torch.fx.passes.split_module import split_module

from modcap.core.errors import InputError
from modcap.graph.nodes import hierarchy, layer_calls, path_of, stored_tensor, weight_layers
from modcap.graph.trace import reserved

__all__ = ["Partition", "partition"]


@dataclass(frozen=True)
class Partition:
    """A chain of modules that together equal the captured network.

    Attributes:
        modules: each takes one tensor and returns one.
        names: the path in the model that each covers; unique.
    """

    modules: tuple[fx.GraphModule, ...]
    names: tuple[str, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """How many weight layers each module has."""
        return tuple(len(weight_layers(module)) for module in self.modules)

    @property
    def paths(self) -> tuple[tuple[str, ...], ...]:
        """What the model calls the weight layers of each module, such as ``features.3.conv.0``."""
        return tuple(tuple(map(path_of, weight_layers(module))) for module in self.modules)

    def __call__(self, x: Tensor) -> Tensor:
        for module in self.modules:
            x = module(x)
        return x


def partition(graph: fx.GraphModule) -> Partition:
    """Cuts ``graph`` (from :func:`modcap.graph.capture.capture`, batch norms folded) into modules.

    Raises:
        InputError: the network has no weight layer.
    """
    if not weight_layers(graph):
        raise InputError("the network has no convolution and no linear layer: nothing to quantize")
    _name_apart(graph)
    nodes = [n for n in graph.graph.nodes if n.op not in ("placeholder", "output", "get_attr")]
    cuts = _cut_points(graph, nodes)
    blocks = _blocks(graph, nodes, cuts)
    kept = [c for c in cuts if not _inside_a_block(nodes[c], nodes[c + 1], blocks)]
    segments = _merge_weightless(graph, nodes, kept)
    number = {node: index for index, segment in enumerate(segments) for node in segment}
    modules = _split(graph, number, len(segments))
    return Partition(modules, _names(graph, segments))


def _cut_points(graph: fx.GraphModule, nodes: Sequence[fx.Node]) -> list[int]:
    """Indices i such that node i's value alone is alive between nodes i and i + 1, and has a row
    for each image."""
    index = {node: i for i, node in enumerate(nodes)}
    last_call = {str(node.target): node for node in nodes if node.op == "call_module"}
    last = {
        node: max((index.get(user, len(nodes)) for user in node.users), default=-1)
        for node in graph.graph.nodes
        if node.op != "get_attr"
    }
    shared = {
        node: index[last_call[str(node.target)]]
        for node in layer_calls(graph)
        if last_call[str(node.target)] is not node
    }
    open_until = -1
    alive: set[fx.Node] = {n for n in graph.graph.nodes if n.op == "placeholder"}
    cuts = []
    for i, node in enumerate(nodes[:-1]):
        alive.add(node)
        open_until = max(open_until, shared.get(node, -1))
        alive = {value for value in alive if last[value] > i}
        if alive == {node} and node.meta["batched"] and i >= open_until:
            cuts.append(i)
    return cuts


def _blocks(graph: fx.GraphModule, nodes: Sequence[fx.Node], cuts: Sequence[int]) -> set[str]:
    """Paths of the composites that stay whole."""
    layers = set(weight_layers(graph))
    weights: Counter[str] = Counter()
    extent: dict[str, list[int]] = {}
    kinds: dict[str, str] = {}
    for i, node in enumerate(nodes):
        for path, kind in hierarchy(node):
            if kind.startswith("torch.nn."):
                continue
            kinds[path] = kind
            weights[path] += node in layers
            extent.setdefault(path, [i, i])[1] = i
    composites = {path for path in kinds if weights[path] >= 2}
    often = Counter(kinds[path] for path in composites)
    ends = {-1, len(nodes) - 1, *cuts}
    apart = {p for p in composites if extent[p][0] - 1 in ends and extent[p][1] in ends}
    inner: dict[str, Counter[str]] = defaultdict(Counter)
    for path in apart:
        for outer in composites:
            if path.startswith(f"{outer}."):
                inner[outer][kinds[path]] += 1
    stages = {path for path in composites if any(n >= 2 for n in inner[path].values())}
    return {path for path in composites - stages if often[kinds[path]] >= 2}


def _inside_a_block(before: fx.Node, after: fx.Node, blocks: set[str]) -> bool:
    return bool(blocks & {p for p, _ in hierarchy(before)} & {p for p, _ in hierarchy(after)})


def _merge_weightless(
    graph: fx.GraphModule, nodes: Sequence[fx.Node], cuts: Sequence[int]
) -> list[list[fx.Node]]:
    """The segments between cuts; one without weights joins the one before (the first: after)."""
    layers = set(weight_layers(graph))
    starts = [0, *(c + 1 for c in cuts)]
    pieces = [list(nodes[a:b]) for a, b in zip(starts, [*starts[1:], len(nodes)], strict=True)]
    segments: list[list[fx.Node]] = []
    for piece in pieces:
        if segments and (not layers & set(piece) or not layers & set(segments[-1])):
            segments[-1] += piece
        else:
            segments.append(piece)
    return segments


def _split(
    graph: fx.GraphModule, number: dict[fx.Node, int], count: int
) -> tuple[fx.GraphModule, ...]:
    def segment(node: fx.Node) -> int:
        if node in number:
            return number[node]
        return min(number[user] for user in node.users if user in number)  # a stored tensor

    callback: Callable[[fx.Node], int] = segment
    whole = split_module(graph, graph, callback, keep_original_order=True)
    for node in whole.graph.nodes:
        if node.op == "call_module":
            _own_stored_tensors(whole, node)
    return tuple(cast(fx.GraphModule, whole.get_submodule(f"submod_{i}")) for i in range(count))


def _name_apart(graph: fx.GraphModule) -> None:
    """Gives layers other names where, within a module, two would have the same, such as ``a.b_c``
    and ``a_b.c``, or one that graphs have themselves."""
    targets = {str(node.target): "" for node in graph.graph.nodes if node.op == "call_module"}
    taken: set[str] = set()
    for target in targets:
        name = target.replace(".", "_")
        while name in taken or reserved(name):
            name += "_"
        taken.add(name)
        if name != target.replace(".", "_"):
            while hasattr(graph, name):
                name += "_"
            graph.add_module(name, graph.get_submodule(target))
            targets[target] = name
    for node in graph.graph.nodes:
        if node.op == "call_module":
            node.target = targets[node.target] or node.target
    graph.recompile()


def _own_stored_tensors(whole: fx.GraphModule, call: fx.Node) -> None:
    """Gives a segment tensors of its own in place of those that the whole would pass to it."""
    segment = cast(fx.GraphModule, whole.get_submodule(str(call.target)))
    inputs = [node for node in segment.graph.nodes if node.op == "placeholder"]
    for value, given in zip(inputs, call.args, strict=True):
        source = cast(fx.Node, given)
        if source.op != "get_attr":
            continue
        name = f"stored_{value.name}"
        while hasattr(segment, name):  # a layer's own
            name += "_"
        segment.register_buffer(name, stored_tensor(whole, source).clone())
        with segment.graph.inserting_before(value):
            fetched = segment.graph.get_attr(name)
        value.replace_all_uses_with(fetched)
        segment.graph.erase_node(value)
    segment.recompile()


def _names(graph: fx.GraphModule, segments: Sequence[Sequence[fx.Node]]) -> tuple[str, ...]:
    layers = set(weight_layers(graph))
    names: list[str] = []
    for segment in segments:
        paths = [path_of(node).split(".") for node in segment if node in layers]
        shared: list[str] = []
        for parts in zip(*paths, strict=False):
            if len(set(parts)) > 1:
                break
            shared.append(parts[0])
        name = ".".join(shared) or ".".join(paths[0])
        taken = sum(n == name or n.startswith(f"{name}#") for n in names)
        names.append(f"{name}#{taken + 1}" if taken else name)
    return tuple(names)
