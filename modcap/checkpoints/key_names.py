"""Names in state dicts that training scripts, wrappers, or older versions of a library, gave
otherwise."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Fitting", "as_expected", "common_prefix", "is_average"]

_UNUSED = ("num_batches_tracked", "_extra_state")  # what a network can do without
_COUNT = "n_averaged"  # which AveragedModel keeps beside its module
_AVERAGE = re.compile(r"(?:^|[^a-z])(?:ema|swa|avg|averaged?|averages|polyak|shadow)(?:[^a-z]|$)")
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_OLD = (  # of torchvision, whose networks once had these names
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
    # of torch, whose wrappers may stand around any part of a network
    (re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."), ""),
    (re.compile(r"(?<![^.])module\."), ""),
)


@dataclass(frozen=True)
class Fitting:
    """Entries under the names of a network.

    Attributes:
        entries: as far as they are known to be its own; else as they were.
        others: ``ema`` or ``raw``, where there is such a set, too, and it was not taken.
        prefixes: in front of the sets of weights that fit equally well; empty where one was taken.
        left: names of averaged weights of another form, which were not looked at.
        only: ``ema`` or ``raw``, where all that fits is of it, and the other was wanted.
    """

    entries: dict[str, Any]
    others: str = ""
    prefixes: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    only: str = ""


def is_average(name: str) -> bool:
    """Whether it speaks of weights that were averaged over training."""
    return _AVERAGE.search(_CAPITAL.sub("_", name).lower()) is not None


def as_expected(
    given: Mapping[str, Any], expected: Collection[str], kind: str | None = None
) -> Fitting:
    """``given`` under the names of a network, ``expected``.

    A prefix is taken off (``model.`` of Lightning, say) where what follows it is all that the
    network needs; what has no such prefix, such as a loss, is left out. Of raw and averaged weights
    those of ``kind`` are taken, raw ones if it is None.
    """
    names = _unique(expected)
    known = {name: given[own] for name, own in _unique(given).items()}
    needed = {name for name, own in names.items() if not own.endswith(_UNUSED)}
    fitting = [p for p in _prefixes(known, needed) if all(p + name in known for name in needed)]
    wanted = [p for p in fitting if is_average(p) == (kind == "ema")]
    chosen = wanted or (fitting if kind is None else [])
    if len(chosen) != 1:
        there = ("raw" if kind == "ema" else "ema") if fitting and not chosen else ""
        return Fitting(dict(given), prefixes=tuple(chosen), only=there)
    (prefix,) = chosen
    beside = tuple(p for p in fitting if p != prefix and p)
    own = {
        names.get(name.removeprefix(prefix), name.removeprefix(prefix)): value
        for name, value in known.items()
        if name.startswith(prefix) and (prefix or not name.startswith(beside))
    }
    own.pop(_COUNT, None)
    others = {is_average(p) for p in fitting} - {is_average(prefix)}
    left = () if others else tuple(n for n in known if not n.startswith(prefix) and is_average(n))
    return Fitting(own, ("ema" if True in others else "raw") if others else "", left=left)


def common_prefix(names: Collection[str]) -> str:
    """What all of ``names`` begin with, up to a point: empty, or such as ``net.encoder.``."""
    parts = [name.split(".")[:-1] for name in names]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(f"{column[0]}.")
    return "".join(shared)


def _unique(names: Collection[str]) -> dict[str, str]:
    """Each as it is called today and without wrappers, to its own name; to itself where two would
    be one."""
    found = {_today(name): name for name in names}
    return found if len(found) == len(names) else {name: name for name in names}


def _today(name: str) -> str:
    for old, new in _OLD:
        name = old.sub(new, name)
    return name


def _prefixes(names: Collection[str], needed: Collection[str]) -> list[str]:
    """Those that stand in front of one needed name."""
    one = min(needed, default="")
    found = {name.removesuffix(one) for name in names if one and f".{name}".endswith(f".{one}")}
    return sorted(found)
