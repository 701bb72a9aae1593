"""Which set of weights is meant, of all that a training script saved: raw or averaged, and under
which key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from modcap.checkpoints.key_names import is_average
from modcap.core.errors import InputError

__all__ = ["EXTRA", "WRAPPERS", "Chosen", "choose", "is_extra", "refuse_choice"]

EXTRA = "_extra_state"
"""What a module keeps beside its tensors, of whatever kind."""

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts save a state dict."""

_LISTED = 100  # characters of names in a message
_DEPTH = 3  # of what is looked through for tensors


@dataclass(frozen=True)
class Chosen:
    """What was taken.

    Attributes:
        content: a state dict, if anything is.
        averaged: whether there was a choice between raw and averaged weights, by keys.
        others: ``ema`` or ``raw``, where there is such a set, too.
        doubts: what else might have been meant, for people.
    """

    content: Any
    averaged: bool = False
    others: str = ""
    doubts: tuple[str, ...] = ()


def choose(content: Any, file: Path, kind: str | None) -> Chosen:
    """The raw or the averaged weights of what a training script saved in ``file``.

    Raises:
        InputError: there are several that may be meant, or none of ``kind``.
    """
    averaged = [key for key in _sets(content, deep=True) if is_average(str(key))]
    if not averaged:
        found = _unwrapped(content, file)
        return Chosen(found, doubts=(*_beside(content, found), *_nameless(content, file, kind)))
    rest = {key: value for key, value in content.items() if key not in averaged}
    raw = bool(_sets(rest, deep=True))
    if kind != "ema" and raw:
        found = _unwrapped(rest, file)
        return Chosen(found, True, "ema", _beside(rest, found))
    refuse_choice(kind, "ema", file)
    found = _unwrapped(content[averaged[0]], file)
    several = [key for key in averaged if _alike(found, content[key])]
    if len(several) > 1:
        raise _several(several, file)
    return Chosen(found, True, "raw" if raw else "")


def refuse_choice(kind: str | None, there: str, file: Path) -> None:
    """Refuses ``kind`` where the file has weights of ``there`` alone.

    Raises:
        InputError: that is so.
    """
    if kind not in (None, there):
        raise InputError(f"checkpoint {file} holds {there} weights only: leave out weights={kind}")


def _unwrapped(content: Any, file: Path) -> Any:
    """The state dict inside what training scripts commonly save around it."""
    for wrapper in WRAPPERS:
        if _holds(content, wrapper):
            content = content[wrapper]
    sets = _sets(content)
    if not sets or any(isinstance(value, Tensor) for value in content.values()):
        return content
    if len(sets) > 1:
        raise _several(sets, file)
    inner = content[sets[0]]
    return next((inner[wrapper] for wrapper in WRAPPERS if _holds(inner, wrapper)), inner)


def _several(sets: list[Any], file: Path) -> InputError:
    names = ", ".join(map(str, sets))[:_LISTED]
    return InputError(f"checkpoint {file} holds several sets of weights ({names}): save one alone")


def _beside(content: Any, taken: Any) -> tuple[str, ...]:
    """That there are others of the same names, where one was taken for its key."""
    others = [
        str(key)
        for key in _sets(content, deep=True)
        if not any(state is taken for state in _states(content[key]))
        and _alike(taken, content[key])
    ]
    if not others:
        return ()
    names = ", ".join(others)[:_LISTED]
    return (
        f"holds other weights of the same names ({names}), which are not taken: save alone "
        "those that are meant",
    )


def _nameless(content: Any, file: Path, kind: str | None) -> tuple[str, ...]:
    """That there are averaged weights without names, as a list, which cannot be taken."""
    items = content.items() if isinstance(content, Mapping) else ()
    keys = [str(k) for k, v in items if is_average(str(k)) and _has_weights(v, _DEPTH)]
    if not keys or kind == "raw" or isinstance(content[keys[0]], Tensor):
        return ()
    said = f"holds averaged weights without their names ({', '.join(keys)[:_LISTED]})"
    if kind == "ema":
        raise InputError(f"checkpoint {file} {said}: copy them into the model, and save that")
    return (f"{said}, and the raw ones are taken",)


def _has_weights(value: Any, depth: int) -> bool:
    if isinstance(value, Tensor):
        return value.ndim > 0
    parts = value.values() if isinstance(value, Mapping) else value
    return (
        isinstance(value, Mapping | list | tuple)
        and depth > 0
        and any(_has_weights(part, depth - 1) for part in parts)
    )


def _alike(one: Any, other: Any) -> bool:
    """Whether most names of a state dict are in another, somewhere in ``other``."""
    if not isinstance(one, Mapping):
        return False
    wanted = {_plain(key) for key in one}
    return any(2 * len(wanted & {_plain(k) for k in s}) > len(wanted) for s in _states(other))


def _plain(key: Any) -> str:
    name = str(key)
    for wrapper in ("module.", "_orig_mod."):
        name = name.removeprefix(wrapper)
    return name


def _states(value: Any) -> Iterator[Mapping[Any, Any]]:
    """``value``, if it is a state dict, else those in it."""
    if not isinstance(value, Mapping):
        return
    if _is_state(value):
        yield value
    else:
        yield from (
            part for part in value.values() if isinstance(part, Mapping) and _is_state(part)
        )


def _sets(content: Any, deep: bool = False) -> list[Any]:
    """The keys under which sets of weights lie, wrapped again or not; deep: by whatever key."""
    if not isinstance(content, Mapping):
        return []
    return [
        key
        for key, value in content.items()
        if isinstance(value, Mapping)
        and (
            any(_holds(value, wrapper) for wrapper in WRAPPERS)
            or _is_state(value)
            or (deep and any(_states(value)))
        )
    ]


def _is_state(content: Mapping[Any, Any]) -> bool:
    kinds = [isinstance(v, Tensor) for key, v in content.items() if not is_extra(key)]
    return bool(kinds) and all(kinds)


def is_extra(key: Any) -> bool:
    """Whether it is of what a module keeps beside tensors."""
    return str(key).rpartition(".")[2] == EXTRA


def _holds(content: Any, key: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(key), Mapping)
