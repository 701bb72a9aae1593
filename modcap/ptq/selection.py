"""Which boundaries to remove, so that the modules on both sides are reconstructed jointly."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from modcap.core.errors import InputError

__all__ = ["Span", "automatic_k", "candidates", "explicit", "random_k", "spans", "top_k"]

_SHARE = 0.8  # of all differentials, that the automatic k covers


class Span(NamedTuple):
    """A group: the modules start, ..., stop - 1."""

    start: int
    stop: int


def _check_k(k: int, allowed: Sequence[bool]) -> None:
    if k > sum(allowed):
        excluded = len(allowed) - sum(allowed)
        raise InputError(
            f"k = {k} is larger than the {sum(allowed)} boundaries that may be selected"
            + (f" ({excluded} of {len(allowed)} are not homogeneous)" if excluded else "")
            + ": choose a smaller --k, or homogeneity 'any'"
        )


def top_k(differentials: Sequence[float], k: int, allowed: Sequence[bool]) -> tuple[bool, ...]:
    """The mask that maximises sum m_i d_i with sum m_i = k over the allowed boundaries.

    This solves max_m sum m_i (CM_i - CM_{i+1})^2 + lambda (1'm - k)^2 for a penalty lambda -> -inf
    (MRECG, eq. 13). Ties go to the boundary nearer the input.
    """
    _check_k(k, allowed)
    candidates = [i for i, free in enumerate(allowed) if free]
    chosen = set(sorted(candidates, key=lambda i: (-differentials[i], i))[:k])
    return tuple(i in chosen for i in range(len(differentials)))


def random_k(k: int, allowed: Sequence[bool], seed: int) -> tuple[bool, ...]:
    """k of the allowed boundaries, drawn by ``seed``: the control of a comparison."""
    _check_k(k, allowed)
    chosen = set(random.Random(seed).sample([i for i, free in enumerate(allowed) if free], k))
    return tuple(i in chosen for i in range(len(allowed)))


def explicit(groups: Sequence[Sequence[str]], names: Sequence[str]) -> tuple[bool, ...]:
    """The mask that joins the named modules; each group must be a run of adjacent modules."""
    mask = [False] * (len(names) - 1)
    for group in groups:
        unknown = [name for name in group if name not in names]
        if unknown:
            known = ", ".join(names)
            raise InputError(f"groups: module {unknown[0]!r} is unknown; modules are: {known}")
        places = [list(names).index(name) for name in group]
        if len(places) < 2 or places != list(range(places[0], places[0] + len(places))):
            raise InputError(f"groups: {list(group)} is not a run of two or more adjacent modules")
        for place in places[:-1]:
            mask[place] = True
    return tuple(mask)


def automatic_k(differentials: Sequence[float], allowed: Sequence[bool]) -> int:
    """The smallest k whose differentials hold 80 % of their sum, at most half of the boundaries."""
    values = sorted((d for d, a in zip(differentials, allowed, strict=True) if a), reverse=True)
    limit = min(math.ceil(len(allowed) / 2), len(values))
    total = math.fsum(values)
    return next((k for k in range(limit) if math.fsum(values[:k]) >= _SHARE * total), limit)


def candidates(differentials: Sequence[float], allowed: Sequence[bool]) -> tuple[int, ...]:
    """The k worth comparing: what capacity says, none, half of the boundaries that may be selected,
    and what lies between, downwards."""
    said, half = automatic_k(differentials, allowed), sum(allowed) // 2
    return tuple(dict.fromkeys((said, 0, half, *range(max(said, half), 0, -1))))


def spans(mask: Sequence[bool]) -> tuple[Span, ...]:
    """The groups that a mask over n boundaries makes of n + 1 modules, in order."""
    starts = [0] + [i + 1 for i, joined in enumerate(mask) if not joined]
    stops = [*starts[1:], len(mask) + 1]
    return tuple(Span(a, b) for a, b in zip(starts, stops, strict=True))
