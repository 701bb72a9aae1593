"""Views, slices, joins and padding in ONNX."""

from __future__ import annotations

from itertools import accumulate
from typing import cast

import torch
from torch import Tensor, fx

from modcap.export.onnx_call import Call, operator
from modcap.export.onnx_graph import Graph

aten = torch.ops.aten
_END = 2**63 - 1
_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


@operator(*(aten.view.default, aten._unsafe_view.default, aten.reshape.default))
@operator(*(aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims))
def reshape(graph: Graph, call: Call) -> str:
    return call.reshape(call.name("self"), call.shape)


@operator(aten.expand.default)
def expand(graph: Graph, call: Call) -> str:
    shape, given = call.shape, call.shape_of("self")
    given = (1,) * (len(shape) - len(given)) + given
    wanted = [1 if str(a) == str(b) else a for a, b in zip(shape, given, strict=True)]
    return graph.add("Expand", call.name("self"), call.dynamic(wanted))


@operator(aten.full.default, aten.full_like.default, aten.zeros_like.default)
@operator(aten.ones_like.default)
def full(graph: Graph, call: Call) -> str:
    value = call.get("fill_value")
    if value is None:
        value = "ones" in str(call.node.target)
    one = graph.constant(torch.tensor(value, dtype=call.node.meta["val"].dtype))
    return graph.add("Expand", one, call.dynamic(call.shape))


@operator(aten.repeat.default)
def repeat(graph: Graph, call: Call) -> str:
    times, shape = call["repeats"], call.shape_of("self")
    new = len(times) - len(shape)
    x = call.reshape(call.name("self"), (*[1] * new, *shape)) if new else call.name("self")
    sizes = [t.meta["val"] if isinstance(t, fx.Node) else t for t in times]
    return graph.add("Tile", x, call.dynamic(sizes))


@operator(aten.permute.default)
def permute(graph: Graph, call: Call) -> str:
    count = len(call.shape)
    return graph.add("Transpose", call.name("self"), perm=[d % count for d in call["dims"]])


@operator(aten.slice.Tensor)
def slice_(graph: Graph, call: Call) -> str:
    dim, start, end = call["dim"], call["start"] or 0, call["end"]
    if isinstance(start, fx.Node) or isinstance(end, fx.Node):
        raise call.refused("from or to a computed place")
    return sliced(graph, call.name("self"), dim, start, _END if end is None else end, call["step"])


def sliced(graph: Graph, x: str, dim: int, start: int, end: int, step: int = 1) -> str:
    """Elements of x from ``start`` up to ``end`` along ``dim``."""
    return graph.add("Slice", x, *(graph.constant([n]) for n in (start, end, dim, step)))


@operator(aten.select.int)
def select(graph: Graph, call: Call) -> str:
    index = graph.constant(torch.tensor(call["index"]))
    return graph.add("Gather", call.name("self"), index, axis=call["dim"])


@operator(aten.embedding.default)
def embedding(graph: Graph, call: Call) -> str:
    return graph.add("Gather", call.name("weight"), call.name("indices"), axis=0)


@operator(aten.index_select.default)
def index_select(graph: Graph, call: Call) -> str:
    return graph.add("Gather", call.name("self"), call.name("index"), axis=call["dim"])


@operator(aten.index.Tensor, aten._unsafe_index.Tensor)
def index_(graph: Graph, call: Call) -> str:
    """Fixed places along neighbouring dimensions: these become one, along which is gathered."""
    dims = [d for d, index in enumerate(call["indices"]) if index is not None]
    indices = [call.held(call["indices"][d]) for d in dims]
    fixed = all(isinstance(i, Tensor) and not i.dtype.is_floating_point for i in indices)
    shape = call.shape_of("self")
    sizes = [shape[d] for d in dims]
    if not fixed or dims != list(range(dims[0], dims[-1] + 1)):
        raise call.refused("by computed or scattered places")
    if not all(isinstance(size, int) for size in sizes):
        raise call.refused("it works across images")
    flat = torch.zeros((), dtype=torch.int64)
    for size, index in zip(cast("list[int]", sizes), indices, strict=True):
        flat = flat * size + index.long() % size
    joined = (*shape[: dims[0]], int(torch.tensor(sizes).prod()), *shape[dims[-1] + 1 :])
    x = call.name("self") if len(dims) == 1 else call.reshape(call.name("self"), joined)
    return graph.add("Gather", x, graph.constant(flat), axis=dims[0])


@operator(aten.cat.default)
def cat(graph: Graph, call: Call) -> str:
    dtype = call.node.meta["val"].dtype
    return graph.add("Concat", *(call.read(x, dtype) for x in call["tensors"]), axis=call["dim"])


@operator(*(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default))
def split(graph: Graph, call: Call) -> list[str]:
    dim = call["dim"]
    sizes = [part.shape[dim] for part in call.node.meta["val"]]
    if not all(isinstance(size, int) for size in sizes):
        raise call.refused("it works across images")
    ends = list(accumulate(sizes))
    x = call.name("self")
    return [sliced(graph, x, dim, end - size, end) for size, end in zip(sizes, ends, strict=True)]


@operator(aten.unbind.int)
def unbind(graph: Graph, call: Call) -> list[str]:
    x, dim = call.name("self"), call["dim"]
    places = range(len(call.node.meta["val"]))
    return [graph.add("Gather", x, graph.constant(torch.tensor(i)), axis=dim) for i in places]


@operator(aten.flip.default)
def flip(graph: Graph, call: Call) -> str:
    x = call.name("self")
    for dim in call["dims"]:
        x = sliced(graph, x, dim, -1, -_END, -1)
    return x


@operator(aten.roll.default)
def roll(graph: Graph, call: Call) -> str:
    x = call.name("self")
    if not call["dims"]:
        raise call.refused("over no dimension")
    for shift, dim in zip(call["shifts"], call["dims"], strict=True):
        size = call.shape_of("self")[dim]
        if not isinstance(size, int):
            raise call.refused("it works across images")
        turn = size - shift % size
        x = graph.add("Concat", *_cut(graph, x, dim, turn), axis=dim)
    return x


def _cut(graph: Graph, x: str, dim: int, place: int) -> tuple[str, str]:
    return sliced(graph, x, dim, place, _END), sliced(graph, x, dim, 0, place)


@operator(aten.pad.default)
def pad(graph: Graph, call: Call) -> str:
    if call["mode"] == "circular":
        return _wrapped(graph, call)
    return padded(graph, call, call["pad"], _PAD_MODES[call["mode"]], call["value"] or 0)


@operator(aten.constant_pad_nd.default)
def constant_pad(graph: Graph, call: Call) -> str:
    return padded(graph, call, call["pad"], "constant", call["value"])


@operator(*(getattr(aten, f"reflection_pad{d}d").default for d in (1, 2, 3)))
def reflection_pad(graph: Graph, call: Call) -> str:
    return padded(graph, call, call["padding"], "reflect", 0)


@operator(*(getattr(aten, f"replication_pad{d}d").default for d in (1, 2, 3)))
def replication_pad(graph: Graph, call: Call) -> str:
    return padded(graph, call, call["padding"], "edge", 0)


def padded(graph: Graph, call: Call, pads: list[int], mode: str, value: float) -> str:
    """The tensor ``self`` padded by torch's ``pads``: (before, after) of the last dimension, of the
    one before it, …"""
    front = [0] * (len(call.shape) - len(pads) // 2)
    begins, ends = [*front, *pads[-2::-2]], [*front, *pads[-1::-2]]
    inputs = [call.name("self"), graph.constant(torch.tensor(begins + ends))]
    if mode == "constant":
        inputs.append(graph.constant(float(value)))
    return graph.add("Pad", *inputs, mode=mode)


def _wrapped(graph: Graph, call: Call) -> str:
    """ONNX wraps since opset 19 only: joined from pieces instead."""
    x, pads = call.name("self"), call["pad"]
    shape = call.shape_of("self")
    for place in range(len(pads) // 2):
        dim, before, after = len(shape) - 1 - place, pads[2 * place], pads[2 * place + 1]
        size = cast(int, shape[dim])
        if min(before, after) < 0:
            raise call.refused("a negative circular padding")
        pieces = [sliced(graph, x, dim, size - before, _END)] if before else []
        pieces += [x, *([sliced(graph, x, dim, 0, after)] if after else [])]
        x = graph.add("Concat", *pieces, axis=dim) if len(pieces) > 1 else x
    return x
