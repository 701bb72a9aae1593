"""Shapes: what is one row for each image in a captured graph, and what never changes.

A network takes images of one size, so only the number of images is free. Whatever else a forward
reads off shapes is a number, and is put in its place; a number of images is read off the tensor at
hand. Otherwise these values would be alive from the input to the head, and no cut point be found.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx

from modcap.core.errors import InputError
from modcap.core.messages import first_line

__all__ = ["localise_batch_size", "more", "observe"]

_SQUEEZES: dict[Any, Any] = {  # of all dimensions of size 1, and of given ones
    "squeeze": "squeeze",
    torch.squeeze: torch.squeeze,
    torch.ops.aten.squeeze.default: torch.ops.aten.squeeze.dims,
}
_SIZES = ("size", "dim", "ndimension", "numel", torch.ops.aten.sym_size.int)


@torch.no_grad()
def observe(graph: fx.GraphModule, example: Tensor) -> None:
    """Fills in ``batched`` and ``ndim``, from two batches of different size, and puts numbers that
    are the same for both, such as a width, in place of what computes them."""
    count, others = len(example), more(example)
    seen = []
    for images in (example, others):
        seen.append(_Observer(graph))
        _run(seen[-1].run, images, count)
    few, many = (observer.shapes for observer in seen)
    for node in graph.graph.nodes:
        shape, fractions = few.get(node, (torch.Size(), False))
        rows = shape[:1], many.get(node, (torch.Size(),))[0][:1]
        node.meta["batched"] = fractions and rows == ((count,), (len(others),))
        node.meta["ndim"] = len(shape)
        if node.target in _SQUEEZES and len(node.args) == 1 and not node.kwargs:
            _keep_batch(node, few)
    fixed: dict[fx.Node, Any] = {}
    for node, number in seen[0].numbers.items():
        read = node.target is operator.getitem or _reads_shape(node)
        known = read or all(source in fixed for source in node.all_input_nodes)
        if known and number == seen[1].numbers.get(node):
            fixed[node] = number
    for node in graph.graph.nodes:
        node.args = fx.map_arg(node.args, lambda n: fixed.get(n, n))
        node.kwargs = fx.map_arg(node.kwargs, lambda n: fixed.get(n, n))
    graph.graph.eliminate_dead_code()
    graph.recompile()
    _run(graph, example[:1], count)


def more(images: Tensor) -> Tensor:
    """Images (2N + 1, ...) that begin with those given (N, ...): another number, other values."""
    return torch.cat([images, images.flip(0) * 0.75, images[:1] * 0.5])


def _reads_shape(node: fx.Node) -> bool:
    return node.target in _SIZES or (node.target is getattr and node.args[1] in ("shape", "ndim"))


def _keep_batch(squeeze: fx.Node, shapes: dict[fx.Node, tuple[torch.Size, bool]]) -> None:
    """Names the dimensions that it leaves out: of a single image it would leave out the first."""
    source = cast(fx.Node, squeeze.args[0])
    if source.meta["batched"]:
        sizes = enumerate(shapes[source][0])
        squeeze.args = (source, [place for place, size in sizes if place and size == 1])
        squeeze.target = _SQUEEZES[squeeze.target]


def _run(graph: Callable[[Tensor], Any], images: Tensor, captured: int) -> None:
    other = len(images) != captured
    any_size = "its forward must take any batch size"
    try:
        result = graph(images)
    except Exception as error:
        what = f"fails on an input of shape {tuple(images.shape)}"
        if other:
            what = f"was captured for batches of {captured} images only"
        mend = any_size if other else "check the size of the images"
        raise InputError(f"the model {what} ({first_line(error)}): {mend}") from None
    if not isinstance(result, Tensor) or result.ndim < 2 or len(result) != len(images):
        shape = f" of shape {tuple(result.shape)}" if isinstance(result, Tensor) else ""
        mend = any_size if other else "give one that returns tensors with a row for each image"
        raise InputError(
            f"the model returns a {type(result).__name__}{shape} for {len(images)} images: {mend}"
        )


class _Observer(fx.Interpreter):
    """Runs a graph and keeps the shape, and whether it holds fractions, of every tensor, and the
    numbers that are computed from shapes alone."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.shapes: dict[fx.Node, tuple[torch.Size, bool]] = {}
        self.numbers: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = value.shape, value.is_floating_point()
        elif n.op in ("call_function", "call_method") and self._of_shapes(n):
            if isinstance(value, int | float):
                self.numbers[n] = value
            elif isinstance(value, tuple) and all(isinstance(size, int) for size in value):
                self.numbers[n] = tuple(value)  # a torch.Size
        return value

    def _of_shapes(self, n: fx.Node) -> bool:
        """Whether it reads the shape of a tensor, or computes with what was read so."""
        return _reads_shape(n) or all(source in self.numbers for source in n.all_input_nodes)


def localise_batch_size(graph: fx.GraphModule) -> None:
    """Reads the batch size off the tensor at hand instead of carrying it from the input.

    A size that lives from the input to the head would keep a second value alive at every boundary.
    """
    for node in list(graph.graph.nodes):
        if not _is_batch_size(node):
            continue
        for user in list(node.users):
            tensors = [n for n in user.all_input_nodes if n.meta.get("batched")]
            if not tensors:  # such as a class token, which is the same for all images
                continue
            with graph.graph.inserting_before(user):
                local = graph.graph.call_method("size", (tensors[0], 0))
            local.meta = user.meta | {"batched": False, "ndim": 0}
            user.replace_input_with(node, local)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _is_batch_size(node: fx.Node) -> bool:
    """Whether ``node`` reads how many rows a tensor with one for each image has."""
    source, place = node, None
    if node.target is operator.getitem:  # of x.shape, or x.size()
        source, place = cast(fx.Node, node.args[0]), node.args[1]
        if not (source.target in (getattr, "size") and source.args[1:] in ((), ("shape",))):
            return False
    elif node.target in ("size", torch.ops.aten.sym_size.int):
        place = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    return bool(place == 0 and cast(fx.Node, source.args[0]).meta["batched"])
