"""Lifting: functional convolutions, linear layers and batch norms become ``nn`` modules again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.nn import functional as F

from modcap.core.errors import InputError
from modcap.graph.fold_constants import fold_constants
from modcap.graph.nodes import place, stored_tensor

__all__ = ["lift_layers"]

aten = torch.ops.aten
_FORWARD = (
    *(F.conv1d, F.conv2d, F.conv3d),
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
    *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding),
)
_TRANSPOSED = (
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    *(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
)
_CONVOLUTIONS = (*_FORWARD, *_TRANSPOSED, torch.convolution, aten.convolution.default)
_NAMES: dict[Any, Sequence[str]] = {  # of the positional arguments of torch's own functions
    F.linear: ("input", "weight", "bias"),
    F.batch_norm: (
        *("input", "running_mean", "running_var", "weight", "bias"),
        *("training", "momentum", "eps"),
    ),
    torch.convolution: (
        *("input", "weight", "bias", "stride", "padding"),
        *("dilation", "transposed", "output_padding", "groups"),
    ),
}
_NAMES |= dict.fromkeys(
    _FORWARD, ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
)
_NAMES |= dict.fromkeys(
    _TRANSPOSED,
    ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
)
_LINEAR = (F.linear, aten.linear.default)
_PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default)
_NATIVE_NORM = aten._native_batch_norm_legit_no_training.default
_BATCH_NORM = (F.batch_norm, aten.batch_norm.default, _NATIVE_NORM)


def lift_layers(graph: fx.GraphModule) -> None:
    """Replaces functional layers over parameters by ``call_module`` nodes, in place.

    Raises:
        InputError: a layer's weight is computed at run time.
    """
    for node in graph.graph.nodes:
        _recompose(graph, node)
    fold_constants(graph, kept=(*_CONVOLUTIONS, *_LINEAR))
    made: dict[Any, str] = {}
    for node in list(graph.graph.nodes):
        maker = _maker(node)
        if maker is not None:
            _replace(graph, node, maker, made)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _recompose(graph: fx.GraphModule, node: fx.Node) -> None:
    """A product with a transposed parameter becomes a linear layer again, as it was before
    ``run_decompositions``."""
    if node.target not in _PRODUCTS or node.kwargs:
        return
    *biases, source, factor = cast(tuple[fx.Node, ...], node.args)
    weight = _transposed(graph, factor)
    stored = all(bias.op == "get_attr" and bias.meta["ndim"] == 1 for bias in biases)
    if weight is not None and stored:
        node.target, node.args = aten.linear.default, (source, weight, *biases)


def _transposed(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """What fetches the parameter that ``node`` is the transpose of, or a batch of copies of it."""
    shapes = []
    while node.target in (aten.expand.default, aten.reshape.default):
        node, shape = cast(tuple[fx.Node, Sequence[Any]], node.args)
        shapes.append(shape)
    if node.target is not aten.permute.default or node.args[1] != [1, 0]:
        return None
    weight = cast(fx.Node, node.args[0])
    if weight.target not in dict(graph.named_parameters(remove_duplicate=False)):
        return None  # computed, or a fixed transform
    rows, columns = stored_tensor(graph, weight).shape
    return weight if all(shape[-2:] == [columns, rows] for shape in shapes) else None


def _maker(node: fx.Node) -> Callable[[dict[str, Any]], nn.Module] | None:
    if node.op != "call_function":
        return None
    if node.target in _CONVOLUTIONS:
        return lambda a: _convolution({"transposed": node.target in _TRANSPOSED} | a)
    if node.target in _LINEAR:
        return _linear
    if node.target in _BATCH_NORM:
        return _batch_norm
    return None


def _replace(
    graph: fx.GraphModule,
    node: fx.Node,
    maker: Callable[[dict[str, Any]], nn.Module],
    made: dict[Any, str],
) -> None:
    """Calls of one function over the same tensors become calls of one layer, as in ``made``."""
    same = _signature(node)
    arguments = _arguments(graph, node)
    source = arguments.pop("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if isinstance(arguments.get(name), fx.Node):
            called = getattr(node.target, "__name__", node.target)
            raise InputError(
                f"{called} at {place(node)}: its {name} is computed at run time, for each image "
                f"anew (as in CondConv), and only layers over stored weights can be quantized: "
                f"train the network with a plain layer there"
            )
    if same not in made:
        layer = maker(arguments | {"ndim": source.meta["ndim"]}).eval().requires_grad_(False)
        made[same] = _free_name(graph, f"lifted_{node.name}")
        graph.add_module(made[same], layer)
    name = made[same]
    with graph.graph.inserting_after(node):
        call = graph.graph.call_module(name, (source,))
    call.meta = dict(node.meta)
    results = [*node.users] if node.target is _NATIVE_NORM else []
    for user in results:  # getitem: it returns (output, mean, deviation)
        call.meta |= {name: user.meta[name] for name in ("batched", "ndim")}
        user.replace_all_uses_with(call)
    node.replace_all_uses_with(call, delete_user_cb=lambda user: user not in results)


def _signature(node: fx.Node) -> str:
    """What ``node`` computes with, but for its first argument."""
    return repr((node.target, node.args[1:], sorted(node.kwargs.items())))


def _free_name(graph: fx.GraphModule, name: str) -> str:
    while hasattr(graph, name):
        name += "_"
    return name


def _arguments(graph: fx.GraphModule, node: fx.Node) -> dict[str, Any]:
    """Arguments by name: in place of nodes that fetch them, stored tensors, but for the input."""
    if isinstance(node.target, OpOverload):
        names: Sequence[str] = [argument.name for argument in node.target._schema.arguments]
    else:
        names = _NAMES[node.target]
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return {n: value if n == "input" else _stored(graph, value) for n, value in given.items()}


def _stored(graph: fx.GraphModule, value: Any) -> Any:
    if isinstance(value, fx.Node) and value.op == "get_attr":
        return stored_tensor(graph, value).clone()
    return value


def _convolution(a: dict[str, Any]) -> nn.Module:
    weight, transposed = a["weight"], a["transposed"]
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{weight.ndim - 2}d")
    groups = a.get("groups", 1)
    first, second = weight.shape[0], weight.shape[1]
    options = {n: _plain(a[n]) for n in ("stride", "padding", "dilation") if a.get(n) is not None}
    if transposed:
        options["output_padding"] = _plain(a.get("output_padding", 0))
    layer = kind(
        first if transposed else second * groups,
        second * groups if transposed else first,
        tuple(weight.shape[2:]),
        groups=groups,
        bias=a.get("bias") is not None,
        **options,
    )
    return _filled(layer, a)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return value[0] if len(value) == 1 else tuple(value)
    return value


def _linear(a: dict[str, Any]) -> nn.Module:
    rows, columns = a["weight"].shape
    return _filled(nn.Linear(columns, rows, bias=a.get("bias") is not None), a)


def _batch_norm(a: dict[str, Any]) -> nn.Module:
    if a.get("running_mean") is None or a.get("training"):
        raise InputError(
            "a batch norm without running statistics: what it gives for an image depends on the "
            "others of the batch"
        )
    mean: Tensor = a["running_mean"]
    affine = a.get("weight") is not None
    kinds = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    kind = kinds.get(a["ndim"], nn.BatchNorm1d)
    layer = kind(len(mean), eps=a.get("eps", 1e-5), affine=affine)
    layer.running_mean, layer.running_var = mean, a["running_var"]
    return _filled(layer, a) if affine else layer


def _filled(layer: nn.Module, a: dict[str, Any]) -> nn.Module:
    for name in ("weight", "bias"):
        if a.get(name) is not None:
            setattr(layer, name, nn.Parameter(a[name], requires_grad=False))
    return layer
