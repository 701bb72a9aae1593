"""Capture: any vision network becomes one functional graph whose weight layers are modules.

torch.fx traces first, since its graph keeps the author's layers; where that, or anything after it,
fails (control flow, an operator that cannot be stored) torch.export captures, and its convolutions,
linear layers and batch norms over parameters are lifted back into ``nn`` modules, so that all that
follows knows one dialect.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.optim.swa_utils import AveragedModel

from modcap.core.errors import InputError
from modcap.core.messages import first_line
from modcap.graph.fold_constants import drop_checks
from modcap.graph.functional_to_module import lift_layers
from modcap.graph.no_ops import drop_no_ops
from modcap.graph.nodes import WEIGHT_LAYERS
from modcap.graph.outputs import join_outputs
from modcap.graph.plain_weights import plain_copy
from modcap.graph.specialize_shapes import localise_batch_size, observe
from modcap.graph.trace import functional_program, ways
from modcap.graph.unquantized_weights import loose_weights

__all__ = ["capture", "first_that_works", "original"]

_IN_PLACE: dict[Any, Any] = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
}
_ANY_LAYOUT: dict[Any, Any] = {
    "view": "reshape",
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten._unsafe_view.default: torch.ops.aten.reshape.default,
}
_UNWRITTEN: dict[Any, Any] = {  # memory that is filled later: with nought, before
    torch.empty: torch.zeros,
    torch.empty_like: torch.zeros_like,
    "new_empty": "new_zeros",
    torch.ops.aten.empty.memory_format: torch.ops.aten.zeros.default,
    torch.ops.aten.empty_like.default: torch.ops.aten.zeros_like.default,
    torch.ops.aten.new_empty.default: torch.ops.aten.new_zeros.default,
}
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
_Finished = TypeVar("_Finished")


def capture(
    model: nn.Module | ExportedProgram, example: Tensor, strict: bool = True
) -> fx.GraphModule:
    """The graph of ``model`` in eval mode: one tensor in, one out (:mod:`modcap.graph.outputs`),
    nothing in place.

    The ``meta`` of each node says whether its value is ``batched``, one row of floating-point
    numbers for each image, and its ``ndim``, 0 where it is no tensor; that of the graph holds
    ``notices``, what stays in floating point.

    Args:
        model: left as it is; the graph is over copies of its tensors.
        example: (N, C, H, W) with N of at least 2; the graph takes any N.
        strict: refuses a product with parameters that cannot be quantized.

    Raises:
        InputError: the model cannot be captured, or a weight layer of it cannot be quantized.
    """
    return first_that_works(model, example, lambda graph: graph, strict)


def first_that_works(
    model: nn.Module | ExportedProgram,
    example: Tensor,
    finish: Callable[[fx.GraphModule], _Finished],
    strict: bool,
) -> _Finished:
    """What ``finish`` makes of the graph of ``model``: of the first way of capture that it, and
    all before it, takes. Raises the error of the first way where none is taken."""
    own = original(model)
    _check_types(own)
    program = isinstance(model, ExportedProgram)
    known = [lambda _: cast(fx.GraphModule, own)] if program else ways(own)
    refused: list[InputError] = []
    for way in known:
        with _noting(refused):
            return finish(_captured(way(example), example, program, strict))
    raise refused[0] from None


@contextlib.contextmanager
def _noting(refused: list[InputError]) -> Iterator[None]:
    """Keeps why a way of capture was not taken."""
    try:
        yield
    except InputError as error:
        refused.append(error)
    except Exception as error:  # of operators in a place where nobody expected them
        said = (
            f"the model cannot be captured ({type(error).__name__}: {first_line(error)}): make its "
            "forward of tensor operations and layers"
        )
        refused.append(InputError(said))


def _captured(
    graph: fx.GraphModule, example: Tensor, program: bool, strict: bool
) -> fx.GraphModule:
    _make_functional(graph)
    drop_checks(graph)
    _name_inputs(graph)
    _check_ends(graph)
    observe(graph, example)
    lift_layers(graph)
    drop_no_ops(graph)
    localise_batch_size(graph)
    _check_layers(graph)
    graph.meta["notices"] = loose_weights(graph, example[:1], program)
    if strict and graph.meta["notices"]:
        raise InputError(graph.meta["notices"][0])
    return graph.requires_grad_(False)


def original(model: nn.Module | ExportedProgram) -> nn.Module:
    """What ``model`` computes in eval mode, in place or not: a copy of it, or a program's graph
    without the checks of what it was exported for."""
    if isinstance(model, ExportedProgram):
        return functional_program(model)
    model = _unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("the model is a ScriptModule: give the nn.Module that it was made from")
    return plain_copy(model)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside what torch wraps around one for training or speed."""
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif type(model).__name__ == "OptimizedModule":  # torch.compile's, seconds to import
            model = cast(nn.Module, model._orig_mod)
        else:
            return model


def _check_types(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():  # which may hold more than tensors
        if (
            isinstance(tensor, Tensor)
            and not name.endswith("_extra_state")
            and tensor.is_floating_point()
            and tensor.dtype != torch.float32
        ):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(f"'{name}' of the model is {kind}: make it float32, by model.float()")


def _make_functional(graph: fx.GraphModule) -> None:
    """Replaces what works in place, later readers of the old value read the new one; and what
    depends on how a tensor lies in memory."""
    changing = {node for node in graph.graph.nodes if _is_in_place_layer(graph, node)}
    for module in graph.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    for node in graph.graph.nodes:
        if node.op in ("call_function", "call_method") and node.target in _UNWRITTEN:
            node.target = _UNWRITTEN[node.target]
            node.kwargs = {n: v for n, v in node.kwargs.items() if n != "memory_format"}
        if node.target is torch.ops.aten._to_copy.default:  # to where the example happened to lie
            node.kwargs = {n: v for n, v in node.kwargs.items() if n != "device"}
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    for node in list(graph.graph.nodes):
        if node.op in ("call_method", "call_function") and not _names_type(node):
            node.target = _ANY_LAYOUT.get(node.target, node.target)
        if not (_was_in_place(node) or node in changing):
            continue
        source = cast(fx.Node, node.args[0])
        for user in [user for user in source.users if order.get(user, 0) > order[node]]:
            user.replace_input_with(source, node)
    graph.recompile()


def _is_in_place_layer(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module" or not node.args:
        return False
    return bool(getattr(graph.get_submodule(str(node.target)), "inplace", False))


def _names_type(node: fx.Node) -> bool:
    """Whether an argument is a dtype, or the dtype of a tensor."""
    given = (*node.args, *node.kwargs.values())
    return "dtype" in node.kwargs or any(
        isinstance(value, torch.dtype)
        or (isinstance(value, fx.Node) and value.target is getattr and value.args[1] == "dtype")
        for value in given
    )


def _was_in_place(node: fx.Node) -> bool:
    """Whether ``node`` changed its first argument; mends it so that it does so no more."""
    if node.op == "call_function" and node.target in _IN_PLACE:
        node.target = _IN_PLACE[node.target]
        return True
    if (
        node.op == "call_method"
        and str(node.target).endswith("_")
        and str(node.target)[-2:] != "__"
    ):
        node.target = str(node.target)[:-1]
        return True
    if node.op == "call_function" and node.kwargs.get("inplace"):
        node.kwargs = {**node.kwargs, "inplace": False}
        return True
    name = getattr(node.target, "__name__", "")
    if node.op == "call_function" and name.endswith("_"):
        for library in (torch, nn.functional):
            if hasattr(library, name[:-1]):
                node.target = getattr(library, name[:-1])
                return True
    return False


def _name_inputs(graph: fx.GraphModule) -> None:
    """A layer that is called by keyword is called by position, as all others are."""
    for node in graph.graph.nodes:
        if node.op == "call_module" and not node.args and len(node.kwargs) == 1:
            node.args, node.kwargs = tuple(node.kwargs.values()), {}


def _check_ends(graph: fx.GraphModule) -> None:
    graph.graph.eliminate_dead_code()
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    unused = [node for node in inputs if not node.users]
    if len(inputs) - len(unused) != 1:
        raise InputError(
            f"the model takes {len(inputs)} inputs: give one with a single image tensor"
        )
    for node in unused:
        graph.graph.erase_node(node)
    join_outputs(graph)
    graph.recompile()


def _check_layers(graph: fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        if node.op != "call_module":
            continue
        target = str(node.target)
        layer = graph.get_submodule(target)
        if isinstance(layer, _ConvTransposeNd) and layer.groups > 1:
            raise InputError(
                f"layer '{target}' is a transposed convolution in groups, which cannot be "
                "quantized yet"
            )
        if isinstance(layer, WEIGHT_LAYERS) and (len(node.args) > 1 or node.kwargs):
            raise InputError(
                f"layer '{target}' is called with more than its input (output_size, say), which "
                "cannot be quantized yet"
            )
        if isinstance(layer, _BatchNorm) and layer.running_mean is None:
            raise InputError(
                f"layer '{target}' has no running statistics: what it gives for an image depends "
                "on the others of the batch"
            )
    graph.graph.lint()
    graph.recompile()
