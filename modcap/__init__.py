"""modcap: post-training quantization of vision networks by module capacity.

The main path, in the order of the paper (MRECG, CVPR 2023, arXiv 2303.11906):
:mod:`modcap.graph` captures a network and cuts it into modules, :mod:`modcap.ptq` measures their
capacity, joins the neighbours that differ most and reconstructs each group, and
:mod:`modcap.export` packs the result. :mod:`modcap.jobs` turns this into a plan of
content-addressed jobs. :mod:`modcap.api` puts them together, in this process.

What is named here is imported when it is used first: ``modcap --help`` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modcap.api import Quantized, quantize
    from modcap.core.errors import GateRefused, InputError, ModcapError
    from modcap.export import artifact
    from modcap.export.artifact import QuantizedNetwork, load
    from modcap.graph.network import Network, build
    from modcap.recipe import Recipe

__all__ = [
    "GateRefused",
    "InputError",
    "ModcapError",
    "Network",
    "Quantized",
    "QuantizedNetwork",
    "Recipe",
    "artifact",
    "build",
    "load",
    "quantize",
]

_ROOMS = {
    "api": ("Quantized", "quantize"),
    "core.errors": ("GateRefused", "InputError", "ModcapError"),
    "export": ("artifact",),  # versions that were registered before it moved import it from here
    "export.artifact": ("QuantizedNetwork", "load"),
    "graph.network": ("Network", "build"),
    "recipe": ("Recipe",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'modcap' has no attribute {name!r}")
    room = import_module(f"modcap.{_ROOM_OF[name]}")
    if name == "artifact":
        return import_module("modcap.export.artifact")
    value = globals()[name] = getattr(room, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
