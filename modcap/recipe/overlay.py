"""Fields laid over others, and fields under the names that they had before."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from modcap.core.errors import Notice

__all__ = ["overlay", "read_old_names"]

_ROUNDING = {  # fields of the optimiser that a way of rounding has now
    "rounding_rate": "rate",
    "rounding_decay": "decay",
    "regulariser": "regulariser",
    "warm_up": "warm_up",
    "beta_start": "beta_start",
    "beta_end": "beta_end",
}


def overlay(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` over ``base``, mappings merged.

    A choice (see :class:`modcap.core.named.Named`) may be its name in either: settings then go to
    the choice that is named below, and those of another choice do not carry over.
    """
    merged = dict(base)
    for name, value in values.items():
        below = merged.get(name)
        if isinstance(value, Mapping):
            if isinstance(below, str):
                below = {"name": below}
            same = isinstance(below, Mapping) and value.get("name") in (None, below.get("name"))
            value = overlay(below, value) if same else dict(value)  # type: ignore[arg-type]
        merged[name] = value
    return merged


def read_old_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe fields (nested, as in a recipe file) under the names that they have now.

    Old ones are named in a :class:`~modcap.core.errors.Notice`.
    """
    read = dict(values)
    if "edge_bits" in read:
        _notice("edge_bits", "first_last_bits")
        read["first_last_bits"] = read.pop("edge_bits")
    optimiser = read.get("optimiser")
    if isinstance(optimiser, Mapping):
        read["optimiser"] = _optimiser(dict(optimiser), read)
    return read


def _optimiser(fields: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    moved = {_ROUNDING[name]: fields.pop(name) for name in list(fields) if name in _ROUNDING}
    if moved:
        for old, new in _ROUNDING.items():
            if new in moved:
                _notice(f"optimiser.{old}", f"optimiser.rounding.{new}")
        own = fields.get("rounding", {})
        own = {"name": own} if isinstance(own, str) else dict(own)
        if own.get("name") == "straight-through":  # which has no other setting
            moved = {name: value for name, value in moved.items() if name == "rate"}
        fields["rounding"] = {**own, **moved}
    if "keep_probability" in fields:
        _notice("optimiser.keep_probability", "method.quantize_probability")
        probability = fields.pop("keep_probability")
        method = recipe.get("method", "qdrop")
        if method == "qdrop":
            recipe["method"] = {"name": "qdrop", "quantize_probability": probability}
    return fields


def _notice(old: str, new: str) -> None:
    message = f"recipe field {old} is called {new} now, and is still read under its old name"
    warnings.warn(message, Notice, stacklevel=5)
