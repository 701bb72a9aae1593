"""Options of an architecture, which weights do not tell: ``BASE?transform_input=true``.

Values are plain: true, false, numbers, words. Which options there are is closed, since whoever may
upload a checkpoint may name its architecture: nothing here opens a file, or calls anything.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from modcap.core.errors import InputError

__all__ = ["Named", "check", "parse"]

Value = bool | int | float | str

_PUBLISHED: dict[str, dict[str, tuple[type, ...]]] = {
    "torchvision": {"transform_input": (bool,), "width_mult": (int, float), "image_size": (int,)},
    "timm": {"global_pool": (str,), "img_size": (int,)},
}
_ASKED = {  # forms that the same weights fit
    ("torchvision", name): (
        "transform_input",
        "true for weights that torchvision published, and those trained on from them; false for "
        "those trained from the start",
    )
    for name in ("googlenet", "inception_v3")
}
_LARGEST = 4096  # of numbers: they are sizes
_WORD = re.compile(r"[A-Za-z_][\w.-]{0,63}")
_NUMBER = re.compile(r"-?\d{1,9}(\.\d{1,9})?(e-?\d{1,2})?")
WEIGHTS = "weights"
_KINDS = ("raw", "ema")


@dataclass(frozen=True)
class Named:
    """An architecture as it is asked for.

    Attributes:
        base: such as ``torchvision:googlenet``.
        options: of its factory.
        weights: ``raw`` or ``ema``, where a file has both; no part of the architecture.
    """

    base: str
    options: Mapping[str, Value]
    weights: str | None = None

    def __str__(self) -> str:
        """The same for the same options, in whatever order and writing."""
        shown = [
            f"{name}={str(value).lower() if isinstance(value, bool) else value}"
            for name, value in sorted(self.options.items())
        ]
        return self.base + ("?" + "&".join(shown) if shown else "")


def parse(architecture: str) -> Named:
    """Reads ``BASE?NAME=VALUE&NAME=VALUE``.

    Raises:
        InputError: an option is no name, an equals sign, and a plain value, or stands there twice.
    """
    base, mark, rest = architecture.partition("?")
    found: dict[str, Value] = {}
    for part in rest.split("&") if mark else ():
        name, _, text = part.partition("=")
        if not name.isidentifier() or name in found:
            raise InputError(
                f"--arch {architecture}: write options as {base}?name=value&name=value"
            )
        found[name] = _value(text, architecture)
    weights = found.pop(WEIGHTS, None)
    if weights not in (None, *_KINDS):
        raise InputError(f"--arch {architecture}: weights is {' or '.join(_KINDS)}")
    return Named(base, found, None if weights is None else str(weights))


def _value(text: str, architecture: str) -> Value:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if _NUMBER.fullmatch(text):
        number = int(text) if text.lstrip("-").isdigit() else float(text)
        if abs(number) <= _LARGEST:
            return number
    if _WORD.fullmatch(text):
        return text
    raise InputError(
        f"--arch {architecture}: {text[:40]!r} is no value of an option: give true, false, a "
        f"number up to {_LARGEST}, or a word"
    )


def check(named: Named, source: str, name: str, factory: Callable[..., Any]) -> None:
    """Refuses options that the architecture does not have, and asks for one that it needs.

    Raises:
        InputError: the line says which there are.
    """
    known = _PUBLISHED.get(source)
    accepted = list(known) if known is not None else _parameters(factory)
    for option, value in named.options.items():
        if accepted is not None and option not in accepted:
            raise InputError(
                f"--arch {named}: there is no option {option}; known are "
                f"{', '.join(accepted) or 'none'}"
            )
        if known is not None and type(value) not in known[option]:
            kinds = " or ".join(kind.__name__ for kind in known[option])
            raise InputError(f"--arch {named}: {option} is of type {kinds}")
    needed = _ASKED.get((source, name))
    if needed and needed[0] not in named.options:
        raise InputError(
            f"--arch {named}: weights do not tell {needed[0]}: say {named.base}?{needed[0]}=true "
            f"or =false ({needed[1]})"
        )


def _parameters(factory: Callable[..., Any]) -> list[str] | None:
    """What a factory of the user's own takes; None where it takes, or does not say, anything."""
    try:
        found = inspect.signature(factory).parameters
    except ValueError:  # of what is written in C
        return None
    if any(one.kind is one.VAR_KEYWORD for one in found.values()):
        return None
    return list(found)
