"""What people write in YAML or JSON: plain values, within bounds, each key once.

A document comes from anyone who may upload one. So nothing in it takes much memory or time: it is
short, aliases are counted for what they stand for, and there are no tags but those of plain values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any

from modcap.core import files
from modcap.core.errors import InputError, Unavailable
from modcap.core.messages import first_line

__all__ = ["read"]

_BYTES = 256 * 1024
_DEPTH = 50
_VALUES = 100_000
_DIGITS = 100  # of a number
_LARGEST = 2**63


def read(file: Path, name: str, limit: int = _BYTES) -> Any:
    """The values in a file, JSON where its suffix says so, else YAML; messages call it ``name``.

    It has ``limit`` bytes at most.

    Raises:
        InputError: it cannot be read, holds a key twice, what is no plain value, or too much.
    """
    try:
        text = files.read(file, name, limit).decode("utf-8-sig")
        values = _json(text) if file.suffix == ".json" else _yaml(text)
        _check(values)
    except InputError:
        raise
    except RecursionError:
        reason = f"it is nested deeper than {_DEPTH} levels"
    except Exception as error:  # YAML has a dozen kinds, and its constructors raise any
        reason = first_line(" ".join(str(error).split()) or type(error).__name__)
    else:
        return values
    raise InputError(f"{name}: cannot be read ({reason}): give YAML or JSON") from None


def _check(values: Any) -> None:
    """Counts values as often as they are referred to, so that aliases save nothing."""
    left, count = [(values, 0)], 0
    while left:
        value, depth = left.pop()
        count += 1
        if depth > _DEPTH:
            raise ValueError(f"it is nested deeper than {_DEPTH} levels")
        if count > _VALUES:
            raise ValueError(f"it stands for more than {_VALUES:,} values")
        if isinstance(value, dict):
            left += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list):
            left += [(part, depth + 1) for part in value]
        else:
            _check_plain(value)


def _check_plain(value: Any) -> None:
    if isinstance(value, str):
        value.encode()  # a lone surrogate can be neither printed nor sent
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no finite number")
    elif isinstance(value, int) and abs(value) >= _LARGEST:
        raise ValueError(f"the number {str(value)[:20]}… is too large")


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_pairs)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_keys([key for key, _ in pairs])
    return dict(pairs)


def _check_keys(keys: list[Any]) -> None:
    seen = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"{key!r} stands there twice")
        seen.add(key)


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise Unavailable("reading YAML needs PyYAML: run pip install pyyaml") from error
    return yaml.load(text, Loader=_loader())


@cache
def _loader() -> Any:
    """PyYAML's safe loader, with plain values only, and bounds on what aliases and merges make."""
    import yaml

    class Loader(yaml.SafeLoader):
        merged = 0

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            _check_keys([key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
            return super().construct_mapping(node, deep)

        def flatten_mapping(self, node: Any) -> None:
            for key, value in node.value:
                if key.tag.endswith(":merge") and not isinstance(value, yaml.MappingNode):
                    raise ValueError("<< takes one mapping")
            super().flatten_mapping(node)
            self.merged += len(node.value)
            if self.merged > _VALUES:
                raise ValueError(f"it stands for more than {_VALUES:,} values")

        def number(self, node: Any) -> Any:
            if len(node.value) > _DIGITS:
                raise ValueError(f"the number {node.value[:20]}… is too long")
            kind = node.tag.rsplit(":", 1)[-1]
            make = self.construct_yaml_int if kind == "int" else self.construct_yaml_float
            return make(node)

    plain = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "str", "seq", "map")}
    known = yaml.SafeLoader.yaml_constructors
    Loader.yaml_constructors = {tag: known[tag] for tag in (*plain, None)}
    for kind in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", Loader.number)
    Loader.yaml_implicit_resolvers = {  # what looks like a date is text
        first: [(tag, form) for tag, form in found if not tag.endswith(":timestamp")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader
