"""What a stored graph must be before anything is built from it.

torch.fx turns a graph into Python source, so every name in one is proved to be a name; functions,
methods, layers and types of arguments are those of closed lists; a node refers to earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn, cast

import torch

from modcap.core.errors import InputError
from modcap.core.names import is_identifier, is_path
from modcap.graph.leaves import LEAVES, SIZED_LEAVES, leaf
from modcap.graph.nodes import WEIGHT_LAYERS
from modcap.graph.operators import ATTRIBUTES, METHODS, SIZED, UNARY, aten, functions

__all__ = ["ATTRIBUTE_OF", "CONSTANTS", "FLOATS", "UNCHECKED", "check_size", "is_device", "prove"]

ATTRIBUTE_OF = "getattr"  # the name of the builtin
FLOATS = ("nan", "inf", "-inf")
_DTYPES = (
    *("float32", "float64", "float16", "bfloat16", "complex64"),
    *("uint8", "int8", "int16", "int32", "int64", "bool"),
)
_FORMATS = ("contiguous_format", "channels_last", "channels_last_3d", "preserve_format", "strided")
CONSTANTS = {name: getattr(torch, name) for name in (*_DTYPES, *_FORMATS)}

_NODES = 50_000
_DEPTH = 12  # of arguments within arguments
_ITEMS = 100_000  # of one list
_TEXT = 500  # characters of a string
_LARGEST = 2**31
_NO_END = 2**63 - 1  # of a slice
_ELEMENTS = 2**28  # that are asked for by sizes in the graph: a gigabyte of floats
UNCHECKED = ("trunc",)  # rounding mode: -2**63 / -1 ends the process
_WORDS = ("padding", "padding_mode", "mode", "approximate")  # arguments of layers
_JOINED = ("add", "eq", "ne")  # operators that shapes are given to, too


def prove(document: Any) -> None:
    """Refuses what is not a graph as :func:`modcap.graph.graph_json.graph_to_json` writes it.

    Raises:
        InputError: the line says what, and at which node.
    """
    fields = _fields(document, ("nodes", "modules"), "a graph")
    modules, nodes = fields["modules"], fields["nodes"]
    if not isinstance(modules, dict) or not isinstance(nodes, list) or len(nodes) > _NODES:
        _refuse("what is no list of nodes and modules", "a graph")
    for target, described in modules.items():
        _check_module(target, described)
    known: set[str] = set()
    for node in nodes:
        _Node(node, known, modules).check()
    _check_whole(nodes, modules)


def _refuse(what: str, where: str) -> NoReturn:
    raise InputError(f"{what} at {where} is not supported: a network is made of tensor operations")


def _fields(value: Any, names: Collection[str], where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(names):
        _refuse(f"what does not have the fields {', '.join(names)}", where)
    return value


def _shown(value: Any) -> str:
    return repr(value)[:80]


def _check_module(target: Any, described: Any) -> None:
    where = f"module {_shown(target)}"
    if not is_path(target):
        _refuse("a name that is none", where)
    kind = _fields(described, ("type", "args"), where)["type"]
    if not isinstance(kind, str) or kind not in LEAVES:
        _refuse(f"module of type {_shown(kind)}", where)
    values = _Values((), where)
    for name, value in values.pairs(described["args"]):
        if name not in LEAVES[kind]:
            _refuse(f"argument {_shown(name)} of {kind}", where)
        if isinstance(value, str) and name not in _WORDS:  # "%999999999d" % 1, say
            _refuse(f"argument {_shown(name)} of {kind}, {_shown(value)},", where)
        values.check(value)
    if kind in SIZED_LEAVES:
        check_size(values.integers, where)


def check_size(integers: Sequence[int], where: str) -> None:
    """Refuses a tensor that is larger than any of a network, as its sizes say."""
    count = 1
    for integer in integers:
        count *= max(1, abs(integer)) if integer != _NO_END else 1
        if count > _ELEMENTS:
            _refuse(f"a tensor of more than {_ELEMENTS:,} elements", where)


def is_device(name: Any) -> bool:
    """Whether ``name`` is that of a device on which networks run."""
    return name in ("cpu", "cuda", *(f"cuda:{index}" for index in range(16)))


class _Values:
    """Checks encoded arguments, and keeps the integers and the references to nodes in them."""

    def __init__(self, known: Collection[str], where: str) -> None:
        self._known, self._where = known, where
        self.integers: list[int] = []
        self.nodes = 0
        self._kinds: dict[str, Callable[[Any, int], None]] = {
            "node": self._node,
            "tuple": self._items,
            "slice": self._slice,
            "dict": self._dict,
        }

    def refuse(self, what: str) -> NoReturn:
        _refuse(what, self._where)

    def check(self, value: Any, depth: int = 0) -> None:
        if depth > _DEPTH:
            self.refuse("an argument that is nested too deeply")
        if isinstance(value, list):
            self._items(value, depth)
        elif isinstance(value, dict):
            self._tagged(value, depth)
        else:
            self._plain(value)

    def _tagged(self, value: dict[str, Any], depth: int) -> None:
        if len(value) != 1:
            self.refuse(f"value {_shown(value)}")
        ((kind, content),) = value.items()
        if kind in self._kinds:
            self._kinds[kind](content, depth + 1)
        elif not _is_constant(kind, content):
            self.refuse(f"value {_shown(content)}")

    def _plain(self, value: Any) -> None:
        if isinstance(value, str):
            fits = len(value) <= _TEXT and value not in UNCHECKED
        elif isinstance(value, int) and not isinstance(value, bool):
            fits = abs(value) <= _LARGEST or value == _NO_END
            self.integers.append(value)
        else:
            fits = value is None or isinstance(value, bool | float)
        if not fits:
            self.refuse(f"value {_shown(value)}")

    def _node(self, name: Any, depth: int) -> None:
        if not isinstance(name, str) or name not in self._known:
            self.refuse(f"a reference to {_shown(name)}, which is no earlier node,")
        self.nodes += 1

    def _items(self, content: Any, depth: int) -> None:
        if not isinstance(content, list) or len(content) > _ITEMS:
            self.refuse(f"value {_shown(content)}")
        for item in content:
            self.check(item, depth + 1)

    def _dict(self, content: Any, depth: int) -> None:
        for _, value in self.pairs(content, plain=True):
            self.check(value, depth)

    def _slice(self, content: Any, depth: int) -> None:
        if not isinstance(content, list) or len(content) != 3:
            self.refuse(f"value {_shown(content)}")
        self._items(content, depth)

    def pairs(self, encoded: Any, plain: bool = False) -> list[tuple[str, Any]]:
        """What a dict holds; its keys are names, or ``plain`` strings."""
        content = encoded if plain else _fields(encoded, ("dict",), self._where)["dict"]
        if not isinstance(content, list):
            self.refuse(f"value {_shown(content)}")
        for pair in content:
            if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
                self.refuse(f"value {_shown(pair)}")
            named = is_identifier(pair[0]) or pair[0] == "device"  # of a call, that of .to()
            if not (named or (plain and len(pair[0]) <= _TEXT)):
                self.refuse(f"a keyword {_shown(pair[0])}")
        if len({key for key, _ in content}) != len(content):
            self.refuse("a keyword that is given twice")
        return [(key, value) for key, value in content]


def _is_constant(kind: str, content: Any) -> bool:
    return isinstance(content, str | bool) and (
        (kind == "torch" and content in CONSTANTS)
        or (kind == "device" and is_device(content))
        or (kind == "float" and content in FLOATS)
        or (kind == "ellipsis" and content is True)
    )


class _Node:
    """Checks one node, whose name is then ``known`` to those after it."""

    def __init__(self, node: Any, known: set[str], modules: Mapping[str, Any]) -> None:
        shown = _shown(node.get("name")) if isinstance(node, dict) else "?"
        self._where = f"node {shown}"
        self._node = _fields(node, ("op", "name", "target", "args", "kwargs"), self._where)
        self._known, self._modules = known, modules
        self._values = _Values(known, self._where)

    def check(self) -> None:
        node, values = self._node, self._values
        name, op = node["name"], node["op"]
        if not is_identifier(name) or name in self._known:
            values.refuse(f"a name that is none, or is taken, {_shown(name)}")
        args = _fields(node["args"], ("tuple",), self._where)["tuple"]
        if not isinstance(args, list):
            values.refuse(f"value {_shown(args)}")
        values.check(args)
        kwargs = dict(values.pairs(node["kwargs"]))
        for value in kwargs.values():
            values.check(value)
        if any(kwargs.get(name) for name in ("out", "generator", "pin_memory", "inplace")):
            values.refuse("an operator that works in place")
        known = {
            "placeholder": self._placeholder,
            "output": self._output,
            "get_attr": self._get_attr,
            "call_module": self._call_module,
            "call_method": self._call_method,
            "call_function": self._call_function,
        }
        if not isinstance(op, str) or op not in known or not isinstance(node["target"], str):
            values.refuse(f"{_shown(op)} {_shown(node['target'])}")
        known[op](node["target"], args, kwargs)
        self._known.add(name)

    def _if(self, holds: bool) -> None:
        if not holds:
            self._values.refuse(f"{self._node['op']} {_shown(self._node['target'])}")

    def _placeholder(self, target: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        self._if(is_identifier(target) and len(args) <= 1 and not kwargs and not self._values.nodes)

    def _output(self, target: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        self._if(target == "output" and len(args) == 1 and _is_node(args[0]) and not kwargs)

    def _get_attr(self, target: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        self._if(is_path(target) and not args and not kwargs)

    def _call_module(self, target: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        self._if(target in self._modules and self._values.nodes > 0)
        if issubclass(cast(type, leaf(self._modules[target]["type"])), WEIGHT_LAYERS):
            self._if(bool(args) and _is_node(args[0]))  # its input is quantized

    def _call_method(self, target: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        if target not in METHODS:
            self._values.refuse(f"method {_shown(target)}")
        self._if(bool(args) and _is_node(args[0]))
        self._check_size(target)

    def _call_function(self, target: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        library, _, name = target.rpartition(".")
        if target == ATTRIBUTE_OF:
            self._if(len(args) == 2 and _is_node(args[0]) and args[1] in ATTRIBUTES and not kwargs)
        elif target not in functions() and aten(target) is None:
            self._values.refuse(f"call_function {_shown(target)}")
        elif library == "operator":
            self._check_operator(name, args)
            self._if(not kwargs)
        else:
            self._check_size(name if aten(target) is None else target.split(".")[1])

    def _check_operator(self, name: str, args: list[Any]) -> None:
        if name == "getitem":
            self._if(len(args) == 2 and _is_node(args[0]))
            return
        self._if(len(args) == (1 if name in UNARY else 2) and self._values.nodes > 0)
        simple = all(_is_node(a) or isinstance(a, int | float | None) for a in args)
        self._if(simple or name in _JOINED)

    def _check_size(self, name: str) -> None:
        if name in SIZED:
            check_size(self._values.integers, self._where)


def _is_node(value: Any) -> bool:
    return isinstance(value, dict) and "node" in value


def _check_whole(nodes: list[dict[str, Any]], modules: Mapping[str, Any]) -> None:
    ops = [node["op"] for node in nodes]
    if ops.count("placeholder") != 1 or ops.count("output") != 1 or ops[-1] != "output":
        _refuse("what has not one input, and one output at the end,", "a graph")
    called = {node["target"] for node in nodes if node["op"] == "call_module"}
    fetched = {node["target"] for node in nodes if node["op"] == "get_attr"}
    if called != set(modules):
        _refuse("a module that no node calls", "a graph")
    for target in called | fetched:
        parts = target.split(".")
        above = {".".join(parts[:n]) for n in range(1, len(parts))}
        if above & fetched or (target in called and (above & called or target in fetched)):
            _refuse(f"a path within another, {_shown(target)},", "a graph")
