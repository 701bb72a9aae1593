"""A captured graph as JSON, and back, without any code: only tensor operations can be named.

Functions are resolved from a fixed list (torch's overridable functions, ``torch.nn.functional``,
aten operators that neither change their arguments nor open files, a few of ``operator``), modules
from the leaf classes of ``torch.nn``. Whatever else a document names is refused.
"""

from __future__ import annotations

import builtins
import inspect
import math
import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.nn import functional as F
from torch.overrides import get_overridable_functions

from modcap.core.errors import InputError
from modcap.graph.nodes import stored_tensor

__all__ = ["fill", "graph_from_json", "graph_to_json", "tensors_of"]

_OPERATORS = [
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "neg",
    "pos",
    "abs",
    "matmul",
    "getitem",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "and_",
    "or_",
    "xor",
    "invert",
    "not_",
]
_ATTRIBUTES = ("shape", "dtype", "device", "ndim")


@cache
def _functions() -> dict[str, Callable[..., Any]]:
    """Name to function, for everything that a ``call_function`` node may call."""
    found: dict[str, Callable[..., Any]] = {
        f"operator.{n}": getattr(operator, n) for n in _OPERATORS
    }
    overridable = get_overridable_functions()
    for prefix, module in (("torch", torch), ("torch.nn.functional", F)):
        for function in overridable[module]:
            name = getattr(function, "__name__", "_")
            if not name.startswith("_") and getattr(module, name, None) is function:
                found[f"{prefix}.{name}"] = function
    for name in ("hardswish", "interpolate", "upsample", "grid_sample", "pixel_shuffle"):
        found[f"torch.nn.functional.{name}"] = getattr(F, name)
    return found


@cache
def _function_names() -> dict[Callable[..., Any], str]:
    return {function: name for name, function in reversed(_functions().items())}


@cache
def _methods() -> frozenset[str]:
    names = {getattr(f, "__name__", "_") for f in get_overridable_functions()[torch.Tensor]}
    barred = {"apply_", "map_", "map2_", "backward", "numpy", "register_hook", "share_memory_"}
    return frozenset(name for name in names - barred if not name.startswith("_"))


def _aten(name: str) -> OpOverload | None:
    """The aten operator ``aten.NAME.OVERLOAD``, if it is a pure function of tensors."""
    parts = name.split(".")
    if len(parts) != 3 or parts[0] != "aten" or not all(p.isidentifier() for p in parts):
        return None
    found = getattr(getattr(torch.ops.aten, parts[1], None), parts[2], None)
    if not isinstance(found, OpOverload) or found._schema.is_mutable:
        return None
    kinds = {str(argument.type) for argument in found._schema.arguments}
    names = {argument.name for argument in found._schema.arguments}
    return found if any("Tensor" in kind for kind in kinds) and "filename" not in names else None


def graph_to_json(module: fx.GraphModule) -> dict[str, Any]:
    """Nodes and modules of ``module`` as JSON values; its tensors are :func:`tensors_of`.

    Raises:
        InputError: the graph calls something that is not on the list.
    """
    nodes = [
        {
            "op": node.op,
            "name": node.name,
            "target": _target_name(node),
            "args": _encode(node.args),
            "kwargs": _encode(dict(node.kwargs)),
        }
        for node in module.graph.nodes
    ]
    called = [str(n.target) for n in module.graph.nodes if n.op == "call_module"]
    return {
        "nodes": nodes,
        "modules": {target: _describe(module.get_submodule(target), target) for target in called},
    }


def graph_from_json(document: dict[str, Any]) -> fx.GraphModule:
    """The graph, its modules on the meta device: :func:`fill` it.

    Raises:
        InputError: the document names something that is not on the list.
    """
    root = nn.Module()
    for target, described in document["modules"].items():
        _put(root, target, _construct(described, target))
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in document["nodes"]:
        if entry["op"] == "get_attr":
            owner, name = _owner(root, entry["target"])
            if not hasattr(owner, name):
                owner.register_buffer(name, torch.empty(0, device="meta"))
        args = _decode(entry["args"], nodes)
        target = _resolve(entry, args)
        kwargs = _decode(entry["kwargs"], nodes)
        node = graph.create_node(entry["op"], target, args, kwargs, name=entry["name"])
        nodes[entry["name"]] = node
    graph.lint()
    return fx.GraphModule(root, graph)


def fill(module: fx.GraphModule, tensors: Mapping[str, Tensor], strict: bool = True) -> None:
    """Puts ``tensors``, named as by :func:`tensors_of`, in the place of those on the meta device.

    Args:
        module: from :func:`graph_from_json`.
        tensors: they become the module's own.
        strict: none may be missing.
    """
    for node in module.graph.nodes:
        owner, _, name = str(node.target).rpartition(".")
        if node.op == "get_attr" and name in (buffers := module.get_submodule(owner)._buffers):
            buffers[name] = tensors[str(node.target)]  # its shape is not known before
    module.load_state_dict(tensors, strict=strict, assign=True)


def tensors_of(module: fx.GraphModule) -> dict[str, Tensor]:
    """The tensors that the graph uses, by name: of its modules, and those that it fetches."""
    found: dict[str, Tensor] = dict(module.state_dict())
    for node in module.graph.nodes:
        if node.op == "get_attr":
            found[str(node.target)] = stored_tensor(module, node)
    return found


def _refuse(what: str, where: str) -> InputError:
    return InputError(f"{what} at {where} is not supported: a network is made of tensor operations")


def _target_name(node: fx.Node) -> str:
    if node.op != "call_function":
        if node.op == "call_method" and node.target not in _methods():
            raise _refuse(f"method {node.target!r}", f"node '{node.name}'")
        return str(node.target)
    if isinstance(node.target, OpOverload):
        name = str(node.target)
        known = _aten(name) is node.target
    else:
        called = cast(Callable[..., Any], node.target)
        name = "getattr" if called is getattr else _function_names().get(called, "")
        known = bool(name)
    if not known:
        raise _refuse(f"operator {node.target}", f"node '{node.name}'")
    return name


def _resolve(entry: dict[str, Any], args: tuple[Any, ...]) -> Any:
    op, target, where = entry["op"], entry["target"], f"node '{entry['name']}'"
    if op in ("placeholder", "output", "get_attr", "call_module"):
        return target
    if op == "call_method" and target in _methods():
        return target
    if op == "call_function":
        if target == "getattr" and len(args) == 2 and args[1] in _ATTRIBUTES:
            return builtins.getattr
        found = _functions().get(target) or _aten(target)
        if found is not None:
            return found
    raise _refuse(f"{op} {target!r}", where)


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item) for item in value]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[key, _encode(item)] for key, item in value.items()]}
    if isinstance(value, slice):
        return {"slice": [_encode(item) for item in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(f"an argument of type {type(value).__name__} in the graph is not supported")


def _decode(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return nodes[content]
    if kind == "tuple":
        return tuple(_decode(item, nodes) for item in content)
    if kind == "dict":
        return {key: _decode(item, nodes) for key, item in content}
    if kind == "slice":
        return slice(*(_decode(item, nodes) for item in content))
    if kind == "torch":
        found = getattr(torch, content, None)
        if isinstance(found, torch.dtype | torch.memory_format | torch.layout):
            return found
    if kind == "device":
        return torch.device(content)
    if kind == "ellipsis":
        return Ellipsis
    if kind == "float":
        return float(content)
    raise _refuse(f"value {content!r}", "a graph's arguments")


def _describe(module: nn.Module, target: str) -> dict[str, Any]:
    """Class and constructor arguments, read back from the attributes of the same name."""
    kind = type(module).__name__
    _leaf_class(kind, target, type(module))
    arguments: dict[str, Any] = {}
    for name in inspect.signature(type(module).__init__).parameters:
        if name in ("self", "device", "dtype", "inplace", "args", "kwargs") or not hasattr(
            module, name
        ):
            continue
        value = getattr(module, name)
        arguments[name] = value is not None if name == "bias" else value
    return {"type": kind, "args": _encode(arguments)}


def _leaf_class(kind: str, target: str, actual: type[nn.Module] | None = None) -> type[nn.Module]:
    found = getattr(nn, kind, None)
    leaf = (
        inspect.isclass(found)
        and issubclass(found, nn.Module)
        and found.__module__.startswith("torch.nn.modules.")
        and found not in (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
        and (actual is None or actual is found)
    )
    if not leaf:
        raise _refuse(f"module of type {kind!r}", f"'{target}'")
    return cast(type[nn.Module], found)


def _construct(described: dict[str, Any], target: str) -> nn.Module:
    kind = _leaf_class(described["type"], target)
    try:
        with torch.device("meta"):
            module = kind(**_decode(described["args"], {}))
    except TypeError:
        raise _refuse(f"module of type {described['type']!r}", f"'{target}'") from None
    return module.eval().requires_grad_(False)


def _owner(root: nn.Module, target: str) -> tuple[nn.Module, str]:
    *path, name = target.split(".")
    owner = root
    for part in path:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    return owner, name


def _put(root: nn.Module, target: str, module: nn.Module) -> None:
    owner, name = _owner(root, target)
    owner.add_module(name, module)
