"""How the type of a field is typed on a command line, and read from there."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from modcap.core.errors import InputError
from modcap.core.named import Named
from modcap.flows.requests.sweep_grid import parse_range

__all__ = ["Kind", "kind_of", "nested"]

AUTO = "auto"


@dataclass(frozen=True)
class Kind:
    """A type as typer knows it, what the help calls its values, and how the flag's text is read."""

    annotation: Any
    metavar: str | None
    read: Callable[[str, Any], Any]


def nested(annotation: Any) -> type[BaseModel] | None:
    """The model whose fields are options themselves, where ``annotation`` is one."""
    plain = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if plain and not issubclass(annotation, Named) else None


def kind_of(annotation: Any, layered: bool) -> Kind:
    """The kind of a field.

    Args:
        annotation: its type.
        layered: whether values lie over others, so that there is a text for None and for False.
    """
    plain, nullable = _without_none(annotation)
    auto = (AUTO,) if nullable and layered else ()
    if plain is bool and not layered:
        return Kind(bool, None, _as_it_is)
    if names := _names(plain):
        return Kind(_enum((*names, *auto)), None, _read_choice)
    if plain in (int, float):
        return Kind(
            str, "|".join(("N" if plain is int else "X", *auto)), _number(plain, bool(auto))
        )
    if get_origin(plain) is tuple:
        return _several(get_args(plain)[0])
    return Kind(str, None, _as_it_is)


def _several(item: Any) -> Kind:
    """Of a field that holds any number of values."""
    plain, nullable = _without_none(item)
    if plain is int:
        return Kind(str, "N,N-N|auto" if nullable else "N,N-N", _range(nullable))
    if names := _names(plain):
        return Kind(list[_enum(names)], None, lambda _, given: tuple(map(_text, given)))  # type: ignore[misc]
    if get_origin(plain) is tuple:
        return Kind(list[str], "A,B", lambda _, given: tuple(tuple(g.split(",")) for g in given))
    return Kind(list[str], None, lambda _, given: tuple(given))


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation, False
    members = tuple(each for each in get_args(annotation) if each is not types.NoneType)
    return Union[members], len(members) < len(get_args(annotation))  # noqa: UP007  # of a list


def _names(plain: Any) -> tuple[str, ...]:
    """What may be chosen; nothing where that is no closed list."""
    if plain is bool:
        return ("yes", "no")
    if isinstance(plain, type) and issubclass(plain, Enum):
        return tuple(str(member.value) for member in plain)
    members = get_args(plain) or (plain,)
    if all(isinstance(each, type) and issubclass(each, Named) for each in members):
        return tuple(each.model_fields["name"].default for each in members)
    return ()


def _enum(names: Sequence[str]) -> Any:
    return Enum("Choice", {name: name for name in names}, type=str)


def _text(choice: Any) -> str:
    return str(getattr(choice, "value", choice))


def _as_it_is(_: str, given: Any) -> Any:
    return given


def _read_choice(_: str, given: Any) -> str | None:
    return None if _text(given) == AUTO else _text(given)


def _number(number: Callable[[str], Any], auto: bool) -> Callable[[str, str], Any]:
    def read(flag: str, text: str) -> Any:
        if auto and text == AUTO:
            return None
        try:
            return number(text)
        except ValueError:
            kind = "a whole number" if number is int else "a number"
            raise InputError(f"{flag} {text!r}: give {kind}{', or auto' if auto else ''}") from None

    return read


def _range(auto: bool) -> Callable[[str, str], tuple[int | None, ...]]:
    """Numbers and ranges; and ``auto``, which comes last, where that is a value."""

    def read(flag: str, text: str) -> tuple[int | None, ...]:
        parts = text.split(",")
        numbers = [part for part in parts if not auto or part.strip() != AUTO]
        found = parse_range(",".join(numbers), flag) if numbers else ()
        return (*found, *((None,) if len(numbers) < len(parts) else ()))

    return read
