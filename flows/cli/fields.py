"""Options of commands are declared once: they are the fields of typed models.

Name, type, choices, bounds, sentence and default of an option come from the field of a recipe, a
request, a grid or a gate. A new field is an option of every command that takes its model.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from modcap.flows.cli.kinds import Kind, kind_of, nested

__all__ = ["Described", "Options", "sentence", "taking"]

Command = Callable[..., None]


@dataclass(frozen=True)
class Described:
    """A field as a page of reference says it: its path in a file, its option, and what it does."""

    field: str
    flag: str
    metavar: str | None
    sentence: str


@dataclass(frozen=True)
class Options:
    """The fields of a model as options.

    Attributes:
        model: whose fields they are; those of models inside it are options, too.
        panel: in the help, of fields that ``panels`` does not name.
        panels: titles in the help, and the fields below each.
        without: fields that are no options.
        flags: of fields whose option is not called as they are.
        presets: where values lie over those of a preset or a file, the presets by name; ``auto``
            then gives None, and switches have two sides.
    """

    model: type[BaseModel]
    panel: str
    panels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    presets: Mapping[str, BaseModel] = field(default_factory=dict)

    def parameters(self) -> list[inspect.Parameter]:
        """Of a command, one for each field, as typer reads them."""
        return [each.parameter() for each in self._fields()]

    def rows(self) -> list[Described]:
        """Every field, for a page of reference."""
        return [
            Described(".".join(f.path), f.flags[0], f.kind.metavar, sentence(f.said, f.default))
            for f in self._fields()
        ]

    def given(self, typed: Mapping[str, Any]) -> dict[str, Any]:
        """What was typed, nested as in the model; what was not typed is left out.

        Raises:
            InputError: a text is no number, or no range.
        """
        values: dict[str, Any] = {}
        for each in self._fields():
            if typed[each.name] not in (None, [], False):
                place = values
                for part in each.path[:-1]:
                    place = place.setdefault(part, {})
                place[each.name] = each.kind.read(each.flags[0], typed[each.name])
        return values

    def _fields(self) -> Iterator[_Field]:
        for path, info in _leaves(self.model):
            if path[0] not in self.without:
                name = path[-1]
                flags = self.flags.get(name, (f"--{name.replace('_', '-')}",))
                kind = kind_of(info.annotation, layered=bool(self.presets))
                yield _Field(path, info, flags, kind, self._panel(path), self._default(path, info))

    def _panel(self, path: tuple[str, ...]) -> str:
        found = (title for title, names in self.panels.items() if path[-1] in names)
        return next(found, path[0].capitalize() if len(path) > 1 else self.panel)

    def _default(self, path: tuple[str, ...], info: FieldInfo) -> str:
        if not self.presets:
            return "none" if info.default is None else _shown(info.default)
        texts = {name: _shown(_at(preset, path)) for name, preset in self.presets.items()}
        if len(set(texts.values())) == 1:
            return next(iter(texts.values()))
        return ", ".join(f"{name}: {text}" for name, text in texts.items())


@dataclass(frozen=True)
class _Field:
    path: tuple[str, ...]
    info: FieldInfo
    flags: tuple[str, ...]
    kind: Kind
    panel: str
    default: str

    @property
    def name(self) -> str:
        return self.path[-1]

    def parameter(self) -> inspect.Parameter:
        required = self.info.is_required()
        option = typer.Option(
            *self.flags,
            help=sentence(self.said, None if required else self.default),
            metavar=self.kind.metavar,
            show_default=False,
            rich_help_panel=self.panel,
        )
        plain = self.kind.annotation
        annotation = plain if required or plain is bool else plain | None
        default = inspect.Parameter.empty if required else False if plain is bool else None
        keyword = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(
            self.name, keyword, default=default, annotation=Annotated[annotation, option]
        )

    @property
    def said(self) -> str:
        bounds = _bounds(self.info)
        return (self.info.description or self.name) + (f" ({bounds})" if bounds else "")


def sentence(text: str, default: str | None = None) -> str:
    """``text`` with a capital and a full stop, and its default, unless it speaks of that itself."""
    first = text.split(maxsplit=1)[0]
    name = len(first) == 1 or ":" in first or "_" in first or "." in first
    said = (text if name else text[:1].upper() + text[1:]).removesuffix(".") + "."
    said = said.replace("[", r"\[")
    return said if default is None or "default" in said else rf"{said} \[default: {default}]"


def taking(**groups: Options) -> Callable[[Command], Command]:
    """Adds options to a command, which gets those of each group that were typed as one mapping,
    under the name of the group."""

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.name not in groups]
        made = {name: group.parameters() for name, group in groups.items()}

        @functools.wraps(command)
        def run(**typed: Any) -> None:
            read = {name: group.given(typed) for name, group in groups.items()}
            command(**{p.name: typed[p.name] for p in own}, **read)

        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        return as_typed(run, [*own, *(p for group in made.values() for p in group)])

    return decorate


def as_typed(command: Command, parameters: list[inspect.Parameter]) -> Command:
    """``command`` with the signature that typer shall see."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _leaves(model: type[BaseModel]) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    for name, info in model.model_fields.items():
        inner = nested(info.annotation)
        if inner is None:
            yield (name,), info
        else:
            yield from (((name, *path), leaf) for path, leaf in _leaves(inner))


def _at(values: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        values = getattr(values, name)
    return values


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == ():
        return "none" if value == () else "auto"
    if isinstance(value, float):
        return f"{value:g}"
    return str(getattr(value, "name", value) if isinstance(value, BaseModel) else _value(value))


def _value(value: Any) -> Any:
    return getattr(value, "value", value)


def _figure(number: Any) -> str:
    return f"2^{number.bit_length() - 1}" if number in (2**32, 2**64) else f"{number:g}"


def _bounds(info: FieldInfo) -> str:
    """Such as ``2 to 8``."""
    found = {type(each): each for each in info.metadata}
    low, high = found.get(Ge), found.get(Le)
    if low and high:
        return f"{low.ge:g} to {high.le:g}"
    texts = [f"at least {low.ge:g}"] if low else []
    texts += [f"more than {found[Gt].gt:g}"] if Gt in found else []
    texts += [f"at most {high.le:g}"] if high else []
    texts += [f"less than {_figure(found[Lt].lt)}"] if Lt in found else []
    return ", ".join(texts)
