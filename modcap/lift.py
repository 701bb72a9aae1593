"""Lifting: functional convolutions, linear layers and batch norms become ``nn`` modules again."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.nn import functional as F

from modcap.errors import InputError
from modcap.partition import place, stored_tensor

__all__ = ["lift_layers"]

aten = torch.ops.aten
_NAMES: dict[Any, Sequence[str]] = {  # of the positional arguments of torch's own functions
    F.linear: ("input", "weight", "bias"),
    F.batch_norm: (
        *("input", "running_mean", "running_var", "weight", "bias"),
        *("training", "momentum", "eps"),
    ),
    F.conv_transpose2d: (
        *("input", "weight", "bias", "stride", "padding"),
        *("output_padding", "groups", "dilation"),
    ),
}
_NAMES |= dict.fromkeys(
    (F.conv1d, F.conv2d, F.conv3d),
    ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
)
_CONVOLUTIONS: dict[Any, type[nn.Module]] = {
    F.conv1d: nn.Conv1d,
    F.conv2d: nn.Conv2d,
    F.conv3d: nn.Conv3d,
    aten.conv1d.default: nn.Conv1d,
    aten.conv2d.default: nn.Conv2d,
    aten.conv3d.default: nn.Conv3d,
    aten.conv2d.padding: nn.Conv2d,
}
_TRANSPOSED: dict[Any, type[nn.Module]] = {
    F.conv_transpose2d: nn.ConvTranspose2d,
    aten.conv_transpose2d.input: nn.ConvTranspose2d,
}
_LINEAR = (F.linear, aten.linear.default)
_BATCH_NORM = (
    F.batch_norm,
    aten.batch_norm.default,
    aten._native_batch_norm_legit_no_training.default,
)


def lift_layers(graph: fx.GraphModule) -> None:
    """Replaces functional layers over parameters by ``call_module`` nodes, in place.

    Raises:
        InputError: a layer's weight is computed at run time.
    """
    for node in list(graph.graph.nodes):
        maker = _maker(node)
        if maker is not None:
            _replace(graph, node, maker)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _maker(node: fx.Node) -> Callable[[dict[str, Any]], nn.Module] | None:
    if node.op != "call_function":
        return None
    if node.target in _CONVOLUTIONS or node.target in _TRANSPOSED:
        return lambda a: _convolution((_CONVOLUTIONS | _TRANSPOSED)[node.target], a)
    if node.target in _LINEAR:
        return _linear
    if node.target in _BATCH_NORM:
        return _batch_norm
    return None


def _replace(
    graph: fx.GraphModule, node: fx.Node, maker: Callable[[dict[str, Any]], nn.Module]
) -> None:
    arguments = _arguments(graph, node)
    source = arguments.pop("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if isinstance(arguments.get(name), fx.Node):
            raise InputError(
                f"{node.target} at {place(node)}: its {name} is computed at run time, and only "
                "layers over stored weights can be quantized"
            )
    layer = maker(arguments | {"ndim": source.meta["ndim"]}).eval().requires_grad_(False)
    name = f"lifted_{node.name}"
    graph.add_module(name, layer)
    with graph.graph.inserting_after(node):
        call = graph.graph.call_module(name, (source,))
    call.meta = dict(node.meta)
    results = [user for user in node.users if user.target is operator.getitem]
    for user in results:  # the native batch norm returns (output, mean, deviation)
        call.meta |= {name: user.meta[name] for name in ("batched", "ndim")}
        user.replace_all_uses_with(call)
    node.replace_all_uses_with(call, delete_user_cb=lambda user: user not in results)


def _arguments(graph: fx.GraphModule, node: fx.Node) -> dict[str, Any]:
    """Arguments by name, stored tensors in place of the nodes that fetch them."""
    if isinstance(node.target, OpOverload):
        names: Sequence[str] = [argument.name for argument in node.target._schema.arguments]
    else:
        names = _NAMES[node.target]
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return {name: _stored(graph, value) for name, value in given.items()}


def _stored(graph: fx.GraphModule, value: Any) -> Any:
    if isinstance(value, fx.Node) and value.op == "get_attr":
        return stored_tensor(graph, value).clone()
    return value


def _convolution(kind: type[nn.Module], a: dict[str, Any]) -> nn.Module:
    weight: Tensor = a["weight"]
    groups = a.get("groups", 1)
    first, second = weight.shape[0], weight.shape[1]
    transposed = kind is nn.ConvTranspose2d
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
