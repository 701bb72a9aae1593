"""What people write in YAML or JSON files, read and checked with one line for what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from modcap.errors import InputError

__all__ = ["parse", "read_mapping"]

Model = TypeVar("Model", bound=BaseModel)


def read_mapping(path: Path, name: str) -> dict[str, Any]:
    """The mapping in a file; ``name`` is what messages call it.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name}: cannot be read ({reason}): give YAML or JSON") from None
    if not isinstance(values, Mapping):
        raise InputError(f"{name}: give a mapping of fields, such as 'w_bits: 2'")
    return dict(values)


def parse(model: type[Model], values: object, name: str = "") -> Model:
    """``values`` as a ``model``; ``name`` is what messages call them.

    Raises:
        InputError: a field is unknown or wrong; the line names it.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise InputError(": ".join(part for part in (name, place, said) if part)) from None
