"""Weights that are stored in parts: a norm and a direction, a mask, the largest singular value.

``torch.nn.utils`` computes the weight from them whenever a layer is called. They do not change any
more, so a network without such hooks gets the weight, computed once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MEND", "Joined", "is_part", "join"]

MEND = (
    "what joins these parts to weights is not in the file: before saving, call "
    "parametrize.remove_parametrizations (or prune.remove) of torch.nn.utils, or name a factory "
    "that registers them"
)
_PARAMETRIZED = re.compile(r"(?P<layer>.*?)parametrizations\.(?P<weight>\w+)\.(?P<part>.+)")
_HOOKED = re.compile(r"(?P<whole>.*\w)_(?P<part>orig|mask|[guv])")


@dataclass(frozen=True)
class Joined:
    """Tensors, some of which were computed.

    Attributes:
        kinds: of what they were computed, for people.
    """

    tensors: dict[str, Tensor]
    kinds: tuple[str, ...] = ()


def join(given: Mapping[str, Tensor], expected: Collection[str]) -> Joined:
    """``given`` with whole weights in place of their parts, where a network, whose names are
    ``expected``, has the whole; what joins others is not known, and they stay."""
    tensors = dict(given)
    kinds: set[str] = set()
    for whole, parts in _parted(given).items():
        names = parts.values()
        if not _known(whole, expected) or any(_known(name, expected) for name in names):
            continue
        for kind, needed, computed in _JOINS:
            if parts.keys() != set(needed):
                continue
            weight = computed(*(given[parts[part]].float() for part in needed))
            if weight is not None:
                tensors = {n: t for n, t in tensors.items() if n not in names} | {whole: weight}
                kinds.add(kind)
    return Joined(tensors, tuple(sorted(kinds)))


def is_part(name: str) -> bool:
    """Whether a name is of a part that code joins."""
    return "parametrizations." in name or name.endswith(("_orig", "_mask"))


def _parted(given: Collection[str]) -> dict[str, dict[str, str]]:
    """The names of the parts of each weight, by what part they are."""
    found: dict[str, dict[str, str]] = {}
    for name in given:
        if match := _PARAMETRIZED.fullmatch(name):
            found.setdefault(match["layer"] + match["weight"], {})[match["part"]] = name
        elif match := _HOOKED.fullmatch(name):
            found.setdefault(match["whole"], {})[f"_{match['part']}"] = name
    return found


def _known(name: str, expected: Collection[str]) -> bool:
    """Whether the network has ``name``, whatever prefix it is given with."""
    parts = name.split(".")
    return any(".".join(parts[start:]) in expected for start in range(len(parts)))


def _normed(norm: Tensor, direction: Tensor) -> Tensor | None:
    """Weight normalisation (Salimans and Kingma, 2016)."""
    kept = [d for d, size in enumerate(norm.shape) if size > 1]
    dimension = -1 if not norm.ndim else kept[0] if kept else 0
    shape = torch.norm_except_dim(direction, 2, dimension).shape
    return torch._weight_norm(direction, norm, dimension) if shape == norm.shape else None


def _over_largest(weight: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
    """Spectral normalisation (Miyato et al., 2018): weight over its largest singular value, whose
    vectors these are. Rows are output channels, the second dimension of transposed convolutions."""
    sizes = [
        torch.dot(left, torch.mv(matrix, right))
        for matrix in (weight.transpose(0, d).flatten(1) for d in range(min(2, weight.ndim)))
        if matrix.shape == (*left.shape, *right.shape)
    ]
    return weight / max(sizes, key=abs) if sizes else None


def _masked(weight: Tensor, mask: Tensor) -> Tensor | None:
    return weight * mask if weight.shape == mask.shape else None


_JOINS: tuple[tuple[str, tuple[str, ...], Callable[..., Tensor | None]], ...] = (
    ("weight normalisation", ("_g", "_v"), _normed),
    ("weight normalisation", ("original0", "original1"), _normed),
    ("spectral normalisation", ("_orig", "_u", "_v"), _over_largest),
    ("spectral normalisation", ("original", "0._u", "0._v"), _over_largest),
    ("pruning", ("_orig", "_mask"), _masked),
)
