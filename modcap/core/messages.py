"""Parts of error messages, and values checked with one line for what is wrong."""

from __future__ import annotations

import re
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from modcap.core.errors import InputError

__all__ = ["first_line", "parse", "without_password", "wrong_field"]

_UNKNOWN = "extra_forbidden"  # whose value is nobody's business
_LONG = 80  # characters of a value that a message shows
_Model = TypeVar("_Model", bound=BaseModel)


def first_line(error: object) -> str:
    """What ``error`` says, short enough to stand inside a message of one line."""
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:160]


def without_password(text: str) -> str:
    """``text`` without what stands before the host in an address."""
    return re.sub(r"//[^/\s]*@", "//", text)


def parse(model: type[_Model], values: object, name: str = "") -> _Model:
    """``values`` as a ``model``; ``name`` is what messages call them.

    Raises:
        InputError: a field is unknown or wrong; the line names it.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        said = wrong_field(error)
    except (ArithmeticError, TypeError, RecursionError) as error:  # of a number, or of a check
        said = first_line(error)
    raise InputError(f"{name}: {said}" if name else said) from None


def wrong_field(error: ValidationError) -> str:
    """The first field that is wrong, why, and what was given for it."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))[:_LONG]
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] == "union_tag_invalid":
        names = " or ".join(first["ctx"]["expected_tags"].rsplit(", ", 1))
        return f"{place}: Input should be {names} (given: {first['ctx']['tag'][:_LONG]!r})"
    plain = isinstance(first["input"], str | int | float | None) and first["type"] != _UNKNOWN
    given = f" (given: {repr(first['input'])[:_LONG]})" if plain and place else ""
    return f"{place}: {said}{given}" if place else said
