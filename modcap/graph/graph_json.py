"""A captured graph as JSON, and back, without any code: only tensor operations can be named.

What is read is proved first, whole (:mod:`modcap.graph.graph_proof`). Functions are those of
:mod:`modcap.graph.operators`, layers those of :mod:`modcap.graph.leaves`.
"""

from __future__ import annotations

import builtins
import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from modcap.core.errors import InputError
from modcap.core.messages import first_line
from modcap.graph.graph_proof import ATTRIBUTE_OF, CONSTANTS, prove
from modcap.graph.leaves import leaf
from modcap.graph.nodes import stored_tensor
from modcap.graph.operators import METHODS, aten, function_names, functions

__all__ = ["check_tensor", "fill", "graph_from_json", "graph_to_json", "tensors_of"]


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


def graph_from_json(document: Any) -> fx.GraphModule:
    """The graph, its modules on the meta device: :func:`fill` it.

    Raises:
        InputError: the document is no graph, or names something that is not on the lists.
    """
    prove(document)
    try:
        return _built(document)
    except Exception as error:  # arguments that a layer does not take, say
        raise InputError(f"a graph cannot be built ({first_line(error)}): it is damaged") from None


def _built(document: dict[str, Any]) -> fx.GraphModule:
    root = nn.Module()
    for target, described in document["modules"].items():
        _put(root, target, _construct(described))
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in document["nodes"]:
        if entry["op"] == "get_attr":
            owner, name = _owner(root, entry["target"])
            if not hasattr(owner, name):
                owner.register_buffer(name, torch.empty(0, device="meta"))
        args, kwargs = _decode(entry["args"], nodes), _decode(entry["kwargs"], nodes)
        target = _resolve(entry["op"], entry["target"])
        node = graph.create_node(entry["op"], target, args, kwargs, name=entry["name"])
        nodes[entry["name"]] = node
    graph.lint()
    return fx.GraphModule(root, graph)


def fill(module: fx.GraphModule, tensors: Mapping[str, Tensor]) -> None:
    """Puts ``tensors``, named as by :func:`tensors_of`, in the place of those on the meta device.

    Args:
        module: from :func:`graph_from_json`.
        tensors: they become the module's own; layers that are not among them stay empty.

    Raises:
        InputError: one is of another shape or type than the module's.
    """
    fetched = _fetched(module)
    own = dict(module.state_dict())
    for name, tensor in tensors.items():
        check_tensor(name, tensor, None if name in fetched else own.get(name))
    for name in fetched & tensors.keys():
        owner, _, last = name.rpartition(".")
        module.get_submodule(owner)._buffers[last] = tensors[name]  # its shape is not known before
    rest = {name: tensor for name, tensor in tensors.items() if name in own}
    module.load_state_dict(rest, strict=False, assign=True)


def _fetched(module: fx.GraphModule) -> set[str]:
    """The buffers that nodes fetch: those of the graph alone, and of its layers."""
    found = set()
    for node in module.graph.nodes:
        owner, _, name = str(node.target).rpartition(".")
        if node.op == "get_attr" and name in module.get_submodule(owner)._buffers:
            found.add(str(node.target))
    return found


def check_tensor(name: str, tensor: Tensor, like: Tensor | None) -> None:
    """Refuses a tensor that is not of the shape and the type of ``like``, or of no known type."""
    known = tensor.dtype in CONSTANTS.values() and tensor.layout == torch.strided
    if not known or (like is not None and _kind(tensor) != _kind(like)):
        expected = f", not {_kind(like)}" if like is not None else ""
        raise InputError(f"tensor '{name}' is {_kind(tensor)}{expected}: the file is damaged")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


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
        if node.op == "call_method" and node.target not in METHODS:
            raise _refuse(f"method {node.target!r}", f"node '{node.name}'")
        return str(node.target)
    if isinstance(node.target, OpOverload):
        name = str(node.target)
        known = aten(name) is node.target
    else:
        called = cast(Callable[..., Any], node.target)
        name = ATTRIBUTE_OF if called is getattr else function_names().get(called, "")
        known = bool(name)
    if not known:
        raise _refuse(f"operator {_shown(node.target)}", f"node '{node.name}'")
    return name


def _shown(target: Any) -> str:
    """Without the address that Python shows of a function."""
    return re.sub(r"( of type object)? at 0x[0-9a-f]+", "", str(target))


def _resolve(op: str, target: str) -> Any:
    if op != "call_function":
        return target
    if target == ATTRIBUTE_OF:
        return builtins.getattr
    return functions().get(target) or aten(target)


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
        return CONSTANTS[content]
    if kind == "device":
        return torch.device(content)
    if kind == "ellipsis":
        return Ellipsis
    return float(content)


def _describe(module: nn.Module, target: str) -> dict[str, Any]:
    """Class and constructor arguments, read back from the attributes of the same name."""
    kind = type(module).__name__
    if leaf(kind) is not type(module):
        raise _refuse(f"module of type {kind!r}", f"'{target}'")
    arguments: dict[str, Any] = {}
    for name in inspect.signature(type(module).__init__).parameters:
        if name in ("self", "device", "dtype", "inplace", "args", "kwargs") or not hasattr(
            module, name
        ):
            continue
        value = getattr(module, name)
        arguments[name] = value is not None if name == "bias" else value
    return {"type": kind, "args": _encode(arguments)}


def _construct(described: dict[str, Any]) -> nn.Module:
    kind = leaf(described["type"])
    assert kind is not None
    with torch.device("meta"):
        module = kind(**_decode(described["args"], {}))
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
