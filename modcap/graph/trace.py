"""The graphs that torch.fx and torch.export make of a model, before anything is changed in them."""

from __future__ import annotations

import inspect
import keyword
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_unflatten

from modcap.core.errors import InputError
from modcap.core.messages import first_line
from modcap.graph.no_ops import is_no_op

__all__ = ["Way", "functional_program", "reserved", "ways"]

Way = Callable[[Tensor], fx.GraphModule]
"""Makes a graph of a model, for images (N, C, H, W)."""
_EMPTY = fx.GraphModule(nn.Module(), fx.Graph())  # with what each graph has, its own fields too


def ways(model: nn.Module) -> Iterator[Way]:
    """The ways in which ``model`` can be captured, the best first.

    torch.fx keeps the author's layers, but runs no code that looks at tensors, and takes arguments
    that are left out to be given.
    """
    traced = _traced(model)
    if traced is not None and not _has_defaults(traced):
        yield lambda _: traced
    yield lambda example: _exported(model, example)
    if traced is not None and _has_defaults(traced):
        yield lambda _: traced


def _traced(model: nn.Module) -> fx.GraphModule | None:
    try:
        graph = _with_free_names(model, _Tracer().trace(model))
    except Exception:  # whatever the author's code raises when it is traced
        return None
    called = [n.target for n in graph.graph.nodes if n.op == "call_module"]
    opaque = any(any(graph.get_submodule(str(target)).children()) for target in called)
    opaque |= any(_hides_code(graph, node) for node in graph.graph.nodes)
    opaque |= any(n.op == "placeholder" and str(n.target)[0] == "*" for n in graph.graph.nodes)
    return None if opaque else graph  # attention as one leaf, say: export looks inside


class _Tracer(fx.Tracer):
    """Looks into layers with hooks, which those of a stored graph have not."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        hooked = m._forward_hooks or m._forward_pre_hooks
        return not hooked and super().is_leaf_module(m, module_qualified_name)


def reserved(name: str) -> bool:
    """Whether a layer of a graph cannot have that name."""
    return keyword.iskeyword(name) or hasattr(_EMPTY, name)


def _with_free_names(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """The module of ``graph``; layers whose names it uses itself get others."""
    nodes = [node for node in graph.nodes if node.op in ("call_module", "get_attr")]
    firsts = {str(node.target).partition(".")[0] for node in nodes}
    if not any(map(reserved, firsts)):
        return fx.GraphModule(model, graph)
    owned: dict[str, Any] = {}
    for node in nodes:
        path = str(node.target)
        first, dot, rest = path.partition(".")
        if reserved(first):
            while reserved(first) or first in firsts:
                first += "_"
            node.target = f"{first}{dot}{rest}"
        owned[str(node.target)] = _at(model, path)
    return fx.GraphModule(owned, graph)


def _at(model: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _has_defaults(graph: fx.GraphModule) -> bool:
    """Whether there are arguments that a call may leave out."""
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    return any(node.args for node in inputs[1:])


def _hides_code(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether ``node`` calls a function that its author kept from being traced (torch.fx.wrap)."""
    origin = str(getattr(node.target, "__module__", None) or "torch").partition(".")[0]
    known = origin in ("torch", "_operator", "builtins", "math")
    return node.op == "call_function" and not known and not is_no_op(graph, node)


def _exported(model: nn.Module, example: Tensor) -> fx.GraphModule:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            batch = _batch(model)
            return functional_program(torch.export.export(model, (example,), dynamic_shapes=batch))
    except Exception as error:
        raise InputError(
            f"the model cannot be captured by torch.fx nor by torch.export ({first_line(error)}): "
            "make its forward free of control flow over data"
        ) from None


def _batch(model: nn.Module) -> tuple[Any, ...]:
    """Only the number of images is free: where the model allows it, which is checked later."""
    first = next(iter(inspect.signature(model.forward).parameters.values()), None)
    sizes = {0: Dim.AUTO}
    several = first is not None and first.kind is inspect.Parameter.VAR_POSITIONAL
    return ((sizes,),) if several else (sizes,)


def functional_program(program: ExportedProgram) -> fx.GraphModule:
    """The graph of ``program`` without the checks of what it was exported for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = cast(fx.GraphModule, program.run_decompositions({}).module())
    for node in list(graph.graph.nodes):  # what checks the shapes of the inputs
        if node.op == "call_module" and not node.users and node.target == "_guards_fn":
            graph.graph.erase_node(node)
        elif node.target is torch.ops.aten.copy.default:  # which has no derivative
            _spell_copy(graph, node)
    graph.graph.set_codegen(fx.graph.CodeGen())
    _nest_outputs(graph, program)
    return fx.GraphModule(graph, graph.graph)


def _nest_outputs(graph: fx.GraphModule, program: ExportedProgram) -> None:
    """Gives what a program returns, which is flat inside, its names again."""
    (end,) = [node for node in graph.graph.nodes if node.op == "output"]
    spec = program.call_spec.out_spec
    if spec is not None and spec.num_leaves == len(end.args[0]):
        end.args = (tree_unflatten(end.args[0], spec),)


def _spell_copy(graph: fx.GraphModule, node: fx.Node) -> None:
    """Values in the shape and type of a tensor that they were written into."""
    place, values = cast(tuple[fx.Node, fx.Node], node.args[:2])
    with graph.graph.inserting_before(node):
        typed = graph.graph.call_function(torch.ops.aten.type_as.default, (values, place))
        typed.meta = dict(values.meta)
    node.target, node.args = torch.ops.aten.expand_as.default, (typed, place)
    node.kwargs = {}
