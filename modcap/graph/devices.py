"""Modules on another device: their tensors, and the devices that their graphs name.

A graph that torch.export captured says where each tensor that it makes shall lie: there, where the
example lay.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import fx, nn

from modcap.graph.graph_proof import is_device

__all__ = ["move", "name_device"]

_M = TypeVar("_M", bound=nn.Module)
_METHODS = ("cpu", "cuda")  # of a tensor, which name a device


def move(module: _M, device: torch.device) -> _M:
    """Moves ``module`` in place, and returns it."""
    name_device(module, device)
    return module.to(device)


def name_device(module: nn.Module, device: torch.device) -> None:
    """Makes the graphs inside ``module`` put what they make on ``device``."""
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            renamed = [_renamed(node, device) for node in part.graph.nodes]
            if any(renamed):
                part.recompile()


def _renamed(node: fx.Node, device: torch.device) -> bool:
    """Whether ``node`` named another device."""
    before = node.target, node.args, node.kwargs
    if node.op == "call_method" and node.target in _METHODS:
        node.target, node.args, node.kwargs = "to", (node.args[0], device), {}
        return True

    def there(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    node.args = fx.node.map_aggregate(node.args, there)
    node.kwargs = fx.node.map_aggregate(node.kwargs, there)
    if is_device(node.kwargs.get("device")):
        node.kwargs = {**node.kwargs, "device": device}
    if node.op == "call_method" and node.target == "to":
        node.args = tuple(device if is_device(value) else value for value in node.args)
    return before != (node.target, node.args, node.kwargs)
