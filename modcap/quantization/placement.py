"""Where activation quantizers stand in a module.

Usually that is in front of what weight layers read. A device that computes in integers alone holds
more in integers: what sums, products, concatenations and averages read and give, and what a layer
gives where no activation function is fused to it. Of such a module, values among which operators
only move or choose (pooling by the largest, views, concatenation) have one scale; they are
quantized where they are computed. What a module gives is quantized by the next one, which owns the
quantizer of its input; the logits, by the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import cast

from torch import fx

from modcap.graph.nodes import layer_calls, weight_layers
from modcap.graph.outputs import JOIN
from modcap.quantization.bits import Bits
from modcap.quantization.operator_kinds import calculates, is_fused, passes, values_of_images

__all__ = ["Placement", "placements"]


@dataclass(frozen=True)
class Placement:
    """One activation quantizer.

    Attributes:
        name: of its module.
        bits: of its integers.
        values: names of the nodes behind which it stands.
        layers: paths of the weight layers that read what it gives.
    """

    name: str
    bits: int
    values: tuple[str, ...]
    layers: tuple[str, ...]


def placements(
    module: fx.GraphModule, bits: Sequence[Bits], of_all: bool = False, last: bool = False
) -> list[Placement]:
    """The quantizers of a module, in order.

    Args:
        module: in full precision.
        bits: of each of its weight layers; an input that all of its layers read in float has none.
        of_all: quantize all that an integer device holds, not only what layers read.
        last: it gives the logits.
    """
    targets = [str(node.target) for node in weight_layers(module)]
    widths = dict(zip(targets, (b.activation for b in bits), strict=True))
    calls = layer_calls(module)
    if of_all:
        return _Classes(module, calls, widths, last).placements()
    reads: dict[str, list[str]] = {}
    for target in targets:
        for call in (call for call in calls if call.target == target):
            reads.setdefault(cast(fx.Node, call.args[0]).name, []).append(target)
    names = _names(module)
    return [
        Placement(next(names), width, (value,), tuple(dict.fromkeys(layers)))
        for value, layers in reads.items()
        if (width := max(widths[target] for target in layers))
    ]


def _names(module: fx.GraphModule) -> Iterator[str]:
    for index in count():
        name = f"input_quantizer_{index}"
        while hasattr(module, name):  # a layer's own
            name += "_"
        yield name


class _Classes:
    """The values of a module in classes of one scale each."""

    def __init__(
        self, module: fx.GraphModule, calls: list[fx.Node], widths: dict[str, int], last: bool
    ) -> None:
        self.module, self.calls, self.widths, self.last = module, calls, widths, last
        self.images = values_of_images(module)
        self._above: dict[fx.Node, fx.Node] = {}
        (output,) = module.graph.find_nodes(op="output")
        self.outputs = [cast(fx.Node, output.args[0])]
        join = self.outputs[0] if last and self.outputs[0].target is JOIN else None
        if join is not None:  # several outputs, which have nothing in common
            self.outputs = join.all_input_nodes
        for node in self.images:
            if passes(module, node) and node is not join:
                self._unite([node, *self._read(node)])
        for target in widths:  # biases have one scale
            self._unite([cast(fx.Node, call.args[0]) for call in calls if call.target == target])

    def _read(self, node: fx.Node) -> list[fx.Node]:
        return [source for source in node.all_input_nodes if source in self.images]

    def _top(self, node: fx.Node) -> fx.Node:
        while node in self._above:
            node = self._above[node]
        return node

    def _unite(self, nodes: list[fx.Node]) -> None:
        for node in nodes[1:]:
            one, two = self._top(nodes[0]), self._top(node)
            if one is not two:
                self._above[two] = one

    def _given(self, node: fx.Node) -> fx.Node:
        """What a calculation gives, with the activation functions that are fused to it."""
        while len(node.users) == 1 and is_fused(self.module, user := next(iter(node.users))):
            node = user
        return node

    def _wanted(self) -> Iterator[tuple[fx.Node, bool]]:
        """The values that are quantized, and whether they are read in this module."""
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                if not all(is_fused(self.module, user) for user in node.users):
                    yield node, True
            elif node in self.calls or calculates(self.module, node, self.images):
                yield from ((source, True) for source in self._read(node))
                yield self._given(node), False
        yield from ((output, self.last) for output in self.outputs)

    def placements(self) -> list[Placement]:
        read: dict[fx.Node, bool] = {}
        for value, inside in self._wanted():
            top = self._top(value)
            read[top] = read.get(top, False) or inside
        for output in self.outputs:
            if not read[self._top(output)]:
                del read[self._top(output)]  # the next module quantizes it
        values: dict[fx.Node, list[fx.Node]] = {}
        for node in self.module.graph.nodes:
            own = node in self.images and not passes(self.module, node) and node.op != "output"
            if own and self._top(node) in read:
                values.setdefault(self._top(node), []).append(node)
        names = _names(self.module)
        return [self._placement(next(names), *found) for found in values.items()]

    def _placement(self, name: str, top: fx.Node, nodes: list[fx.Node]) -> Placement:
        readers = [c for c in self.calls if self._top(cast(fx.Node, c.args[0])) is top]
        layers = tuple(dict.fromkeys(str(call.target) for call in readers))
        widths = [self.widths[layer] for layer in layers] or list(self.widths.values())
        return Placement(name, max(widths), tuple(node.name for node in nodes), layers)
