"""Capture: any image classifier becomes one functional graph whose weight layers are modules.

torch.fx traces first, since its graph keeps the author's layers; where that fails (data-dependent
control flow) torch.export captures, and its convolutions, linear layers and batch norms over
parameters are lifted back into ``nn`` modules, so that all that follows knows one dialect.
"""

from __future__ import annotations

import copy
import operator
import warnings
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.optim.swa_utils import AveragedModel

from modcap.core.errors import InputError
from modcap.core.messages import first_line
from modcap.graph.functional_to_module import lift_layers
from modcap.graph.nodes import WEIGHT_LAYERS
from modcap.graph.specialize_shapes import localise_batch_size, observe
from modcap.graph.unquantized_weights import refuse_loose_weights

__all__ = ["capture", "original"]

_IN_PLACE: dict[Any, Any] = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
}
_ANY_LAYOUT: dict[Any, Any] = {
    "view": "reshape",
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten._unsafe_view.default: torch.ops.aten.reshape.default,
}
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
_NO_OPS = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def capture(model: nn.Module | ExportedProgram, example: Tensor) -> fx.GraphModule:
    """The graph of ``model`` in eval mode: one tensor in, one tensor out, nothing in place.

    The ``meta`` of each node says whether its value is ``batched``, one row of floating-point
    numbers for each image, and its ``ndim``, 0 where it is no tensor.

    Args:
        model: left as it is; the graph is over copies of its tensors.
        example: (N, C, H, W) with N of at least 2; the graph takes any N.

    Raises:
        InputError: the model cannot be captured, or a weight layer of it cannot be quantized.
    """
    own = original(model)
    _check_types(own)
    program = isinstance(model, ExportedProgram)
    graph = cast(fx.GraphModule, own) if program else _graph_of(own, example)
    _make_functional(graph)
    _name_inputs(graph)
    _check_ends(graph)
    observe(graph, example)
    lift_layers(graph)
    _drop_no_ops(graph)
    localise_batch_size(graph)
    _check_layers(graph)
    refuse_loose_weights(graph, example[:1], program)
    return graph.requires_grad_(False)


def original(model: nn.Module | ExportedProgram) -> nn.Module:
    """What ``model`` computes in eval mode, in place or not: a copy of it, or a program's graph
    without the checks of what it was exported for."""
    if isinstance(model, ExportedProgram):
        return _functional_program(model)
    model = _unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("the model is a ScriptModule: give the nn.Module that it was made from")
    try:
        return copy.deepcopy(model).eval().requires_grad_(False)
    except RuntimeError as error:
        if "deepcopy" not in str(error):
            raise
        raise InputError(
            f"the model cannot be copied ({first_line(error)}): remove_weight_norm and "
            "remove_spectral_norm leave parameters that can"
        ) from None


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
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(f"'{name}' of the model is {kind}: make it float32, by model.float()")


def _graph_of(model: nn.Module, example: Tensor) -> fx.GraphModule:
    traced = _traced(model)
    if traced is None:
        return _exported(model, example)
    if _has_defaults(traced):  # which fx traced as if they were given, and may steer a branch
        try:
            return _exported(model, example)
        except InputError:
            return traced
    return traced


def _traced(model: nn.Module) -> fx.GraphModule | None:
    try:
        graph = fx.symbolic_trace(model)
    except Exception:  # whatever the author's code raises when it is traced
        return None
    called = [n.target for n in graph.graph.nodes if n.op == "call_module"]
    opaque = any(any(graph.get_submodule(str(target)).children()) for target in called)
    opaque |= any(_hides_code(graph, node) for node in graph.graph.nodes)
    return None if opaque else graph  # attention as one leaf, say: export looks inside


def _has_defaults(graph: fx.GraphModule) -> bool:
    """Whether there are arguments that a call may leave out."""
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    return any(node.args for node in inputs[1:])


def _hides_code(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether ``node`` calls a function that its author kept from being traced (torch.fx.wrap)."""
    origin = str(getattr(node.target, "__module__", None) or "torch").partition(".")[0]
    known = origin in ("torch", "_operator", "builtins", "math")
    return node.op == "call_function" and not known and not _is_no_op(graph, node)


def _exported(model: nn.Module, example: Tensor) -> fx.GraphModule:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            batch = ({0: Dim.AUTO},)  # free where the model allows it, and checked below
            return _functional_program(torch.export.export(model, (example,), dynamic_shapes=batch))
    except Exception as error:
        raise InputError(
            f"the model cannot be captured by torch.fx nor by torch.export ({first_line(error)}): "
            "make its forward free of control flow over data"
        ) from None


def _functional_program(program: ExportedProgram) -> fx.GraphModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = cast(fx.GraphModule, program.run_decompositions({}).module())
    for node in list(graph.graph.nodes):  # what checks the shapes of the inputs
        if node.op == "call_module" and not node.users and node.target == "_guards_fn":
            graph.graph.erase_node(node)
    graph.graph.set_codegen(fx.graph.CodeGen())
    return fx.GraphModule(graph, graph.graph)


def _make_functional(graph: fx.GraphModule) -> None:
    """Replaces what works in place, later readers of the old value read the new one; and what
    depends on how a tensor lies in memory."""
    changing = {node for node in graph.graph.nodes if _is_in_place_layer(graph, node)}
    for module in graph.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
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


def _drop_no_ops(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        if _is_no_op(graph, node):
            node.replace_all_uses_with(cast(fx.Node, node.args[0]))
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()


def _is_no_op(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), _NO_OPS)
    name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
    if name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"):
        return not node.kwargs.get("training", len(node.args) > 2 and node.args[2])
    return name == "stochastic_depth" and not node.kwargs.get("training", node.args[-1])


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
    _unwrap_output(graph)
    graph.recompile()


def _check_layers(graph: fx.GraphModule) -> None:
    seen: set[str] = set()
    for node in graph.graph.nodes:
        if node.op != "call_module":
            continue
        target = str(node.target)
        layer = graph.get_submodule(target)
        if target in seen and isinstance(layer, WEIGHT_LAYERS):
            raise InputError(
                f"layer '{target}' is called twice: shared weights cannot be quantized yet"
            )
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
        seen.add(target)
    graph.graph.lint()
    graph.recompile()


def _unwrap_output(graph: fx.GraphModule) -> None:
    """A tuple of one tensor, as torch.export returns it, becomes the tensor."""
    (output,) = [node for node in graph.graph.nodes if node.op == "output"]
    value = output.args[0]
    if isinstance(value, tuple | list) and len(value) == 1:
        output.args = (value[0],)
    if not isinstance(output.args[0], fx.Node):
        kind = type(output.args[0]).__name__.removeprefix("immutable_")
        raise InputError(f"the model returns a {kind}: give one that returns the logits alone")
