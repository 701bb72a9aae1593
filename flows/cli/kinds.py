"""How the type of a field is typed on a command line, and read from there."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

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
    number, words = _number_or_words(plain)
    if number:
        meaning = dict(zip(words, words, strict=True)) | dict.fromkeys(auto)
        metavar = "|".join(("N" if number is int else "X", *meaning))
        return Kind(str, metavar, _number(number, meaning))
    if get_origin(plain) is tuple:
        return _several(get_args(plain)[0])
    return Kind(str, None, _as_it_is)


def _several(item: Any) -> Kind:
    """Of a field that holds any number of values."""
    plain, nullable = _without_none(item)
    number, words = _number_or_words(plain)
    if number:
        meaning = dict(zip(words, words, strict=True)) | ({AUTO: None} if nullable else {})
        numbers = "N,N-N" if number is int else "X,X"
        return Kind(str, "|".join((numbers, *meaning)), _range(number, meaning))
    if names := _names(plain):
        return Kind(list[_enum(names)], None, lambda _, given: tuple(map(_text, given)))  # type: ignore[misc]
    if get_origin(plain) is tuple and get_args(plain)[-1] is not Ellipsis:
        return Kind(list[str], "PATTERN=BITS", lambda flag, given: tuple(map(_pair(flag), given)))
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


def _number_or_words(plain: Any) -> tuple[type | None, tuple[str, ...]]:
    """Of a type of numbers, which one; and the words that may stand in their place."""
    members = get_args(plain) if get_origin(plain) in (Union, types.UnionType) else (plain,)
    words = [word for each in members if get_origin(each) is Literal for word in get_args(each)]
    plains = [each for each in members if get_origin(each) is not Literal]
    return (plains[0], tuple(words)) if plains in ([int], [float]) else (None, ())


def _number(
    number: Callable[[str], Any], words: Mapping[str, str | None]
) -> Callable[[str, str], Any]:
    """A number, or what a word means."""

    def read(flag: str, text: str) -> Any:
        if text in words:
            return words[text]
        try:
            return number(text)
        except ValueError:
            kind = "a whole number" if number is int else "a number"
            or_word = "".join(f", or {word}" for word in words)
            raise InputError(f"{flag} {text!r}: give {kind}{or_word}") from None

    return read


def _pair(flag: str) -> Callable[[str], tuple[str, str]]:
    def read(text: str) -> tuple[str, str]:
        pattern, equals, bits = text.rpartition("=")
        if not (equals and pattern):
            raise InputError(f"{flag} {text!r}: give PATTERN=BITS, such as 'head.*=8'")
        return pattern, bits

    return read


def _range(
    number: Callable[[str], Any], words: Mapping[str, str | None]
) -> Callable[[str, str], tuple[Any, ...]]:
    """Numbers, and ranges of whole ones; and what words mean, which comes last."""

    def read(flag: str, text: str) -> tuple[Any, ...]:
        parts = [part.strip() for part in text.split(",")]
        numbers = [part for part in parts if part not in words]
        if number is int:
            found: Sequence[Any] = parse_range(",".join(numbers), flag) if numbers else ()
        else:
            found = [_number(number, {})(flag, part) for part in numbers]
        return (*found, *(words[part] for part in dict.fromkeys(parts) if part in words))

    return read
