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
    read, renamed = dict(values), dict[str, str]()
    if "edge_bits" in read:
        renamed["edge_bits"] = "first_last_bits"
        read["first_last_bits"] = read.pop("edge_bits")
    if isinstance(read.get("optimiser"), Mapping):
        read["optimiser"] = dict(read["optimiser"])
        renamed |= _move_to_rounding(read["optimiser"])
        renamed |= _move_to_method(read)
    if renamed:
        said = ", ".join(f"{old} (now {new})" for old, new in renamed.items())
        warnings.warn(f"the recipe has fields under old names: {said}", Notice, stacklevel=4)
    return read


def _move_to_rounding(optimiser: dict[str, Any]) -> dict[str, str]:
    moved = {new: optimiser.pop(old) for old, new in _ROUNDING.items() if old in optimiser}
    if not moved:
        return {}
    renamed = {
        f"optimiser.{old}": f"optimiser.rounding.{new}"
        for old, new in _ROUNDING.items()
        if new in moved
    }
    own = optimiser.get("rounding", {})
    own = {"name": own} if isinstance(own, str) else dict(own)
    if own.get("name") == "straight-through":  # of which the others never had an effect
        moved = {name: value for name, value in moved.items() if name == "rate"}
    optimiser["rounding"] = {**own, **moved}
    return renamed


def _move_to_method(recipe: dict[str, Any]) -> dict[str, str]:
    if "keep_probability" not in recipe["optimiser"]:
        return {}
    probability = recipe["optimiser"].pop("keep_probability")
    if recipe.get("method", "qdrop") == "qdrop":  # it never had an effect on the others
        recipe["method"] = {"name": "qdrop", "quantize_probability": probability}
    return {"optimiser.keep_probability": "method.quantize_probability"}
