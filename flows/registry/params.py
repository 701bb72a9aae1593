"""The parameters of a run: the recipe as it was used, not as it was left open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modcap.recipe import Recipe

from mlflow.entities import Param  # isort: skip  # MLflow reads the environment at import

__all__ = ["params_of"]

_LONGEST = 6000  # characters that MLflow takes


def params_of(recipe: Recipe, k: int | None = None) -> Iterator[Param]:
    """Every field that has a value. ``k`` is what was used, and left out while nobody knows that;
    ``k_asked`` is what was asked for. Of fields that follow from others, what follows."""
    fields = recipe.model_dump(mode="json") | {
        "k": k,
        "k_asked": recipe.k_asked,
        "correction": recipe.corrects,
        "tuning": recipe.tuning_steps,
    }
    for name, value in _flat(fields):
        if value is not None and value != []:
            yield Param(name, str(value)[:_LONGEST])


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
