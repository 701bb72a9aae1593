"""Choices that own their settings: a method of rounding, say, and what only that method needs.

A choice is written as its name where its settings are the defaults (``soft``), and as a mapping
where they are not (``{name: soft, rate: 0.01}``). It is read from both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic.fields import FieldInfo

__all__ = ["Frozen", "Named", "key_fields", "reading", "sparse"]

_SPARSE = "left out of keys while it has its default"


class Frozen(BaseModel):
    """Settings: checked when they are made, never changed, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Named(Frozen):
    """One of several choices; a subclass gives its ``name`` as a literal, and its settings."""

    name: str

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> Any:
        fields = type(self).model_fields
        changed = {
            name: value
            for name, value in handler(self).items()
            if name != "name" and getattr(self, name) != fields[name].default
        }
        return {"name": self.name, **changed} if changed else self.name


def reading(usual: str) -> BeforeValidator:
    """Reads a choice that is given by its name alone, or by settings of the ``usual`` one alone."""

    def read(value: Any) -> Any:
        if isinstance(value, str):
            return {"name": str(getattr(value, "value", value))}
        return {"name": usual, **value} if isinstance(value, Mapping) else value

    return BeforeValidator(read)


def sparse(default: Any, **options: Any) -> Any:
    """A field that :func:`key_fields` leaves out while it has its default.

    Fields that come after results have been stored are of this kind: keys from before stay."""
    return Field(default, json_schema_extra={_SPARSE: True}, **options)


def key_fields(settings: BaseModel) -> dict[str, Any]:
    """The fields of ``settings`` that are part of keys, as JSON values."""
    left_out = {
        name
        for name, field in type(settings).model_fields.items()
        if _is_sparse(field) and getattr(settings, name) == field.default
    }
    written: Any = settings.model_dump(mode="json", exclude=left_out)
    if isinstance(settings, Named):  # which is written in short
        written = {name: getattr(settings, name) for name in type(settings).model_fields}
        written = {name: value for name, value in written.items() if name not in left_out}
    fields: dict[str, Any] = written
    return fields


def _is_sparse(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get(_SPARSE))
