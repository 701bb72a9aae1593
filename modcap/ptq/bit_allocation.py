"""Mixed precision: which layer gets how many bits, as one integer programme.

With a width for each layer, x[l, w] in {0, 1} and sum over w of x[l, w] = 1 for each layer l,

    minimise sum e[l, w] x[l, w]   where   sum c[l, w] x[l, w] <= C

for errors e (:mod:`modcap.ptq.sensitivity`) and costs c in bits or bytes; or the other way round,
the least cost whose error is within a bound. HiGHS solves it to the optimum.

Of equal solutions one is chosen by rule: a width that costs more and errs no less than another is
never taken, and of layers that are alike the earlier one gets more bits.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

__all__ = ["Table", "least", "total"]

Table = Sequence[Sequence[float]]
"""For each layer, a value of each of its widths, in ascending order of widths."""

_NODES = 200_000  # of the search, at most
_TRIES = 8  # with a bound that is a little lower, where rounding let one through that is too large
_TOLERANCE = 1e-6  # of HiGHS, by which a constraint may be exceeded


def least(objective: Table, spent: Table, most: float) -> list[int] | None:
    """The width of each layer, by its place, with the least sum of ``objective`` whose sum of
    ``spent`` is at most ``most``; None where there is none.

    Example:
        >>> errors, bits = [[0.9, 0.1], [0.3, 0.2]], [[2.0, 4.0], [2.0, 4.0]]
        >>> least(errors, bits, 6.0)
        [1, 0]
    """
    kept = [_useful(*rows) for rows in zip(objective, spent, strict=True)]
    costs, uses = (
        [[row[w] for w in places] for row, places in zip(table, kept, strict=True)]
        for table in (objective, spent)
    )
    if sum(map(min, uses)) > most:
        return None
    if sum(map(max, uses)) <= most:  # each takes the best that it has
        found: list[int] | None = [row.index(min(row)) for row in costs]
    else:
        found = _solved(costs, uses, most)
    if found is None:
        return None
    chosen = [places[place] for places, place in zip(kept, found, strict=True)]
    return _in_order(chosen, objective, spent)


def total(table: Table, chosen: Sequence[int]) -> float:
    """The sum of what was chosen."""
    return sum(row[place] for row, place in zip(table, chosen, strict=True))


def _useful(objective: Sequence[float], spent: Sequence[float]) -> list[int]:
    """The places of a layer than which no other is at least as good in both, in order."""
    by_use = sorted(range(len(spent)), key=lambda w: (spent[w], objective[w], w))
    kept: list[int] = []
    for place in by_use:
        if not kept or objective[place] < objective[kept[-1]]:
            kept.append(place)
    return sorted(kept)


def _in_order(chosen: Sequence[int], objective: Table, spent: Table) -> list[int]:
    """The same widths, where layers are alike the larger ones first."""
    alike: dict[tuple[tuple[float, ...], ...], list[int]] = defaultdict(list)
    for layer, rows in enumerate(zip(objective, spent, strict=True)):
        alike[tuple(map(tuple, rows))].append(layer)
    ordered = list(chosen)
    for layers in alike.values():
        places = sorted((chosen[layer] for layer in layers), reverse=True)
        for layer, place in zip(layers, places, strict=True):
            ordered[layer] = place
    return ordered


def _solved(objective: Table, spent: Table, most: float) -> list[int] | None:
    """The optimum. Sums are brought to the order of one, since HiGHS has absolute tolerances; what
    they let through is checked, and refused."""
    unit = sum(map(min, objective)) or max(map(max, objective)) or 1.0
    bound, found = most, None
    for _ in range(_TRIES):
        found = _programme(objective, spent, bound, unit)
        if found is None:
            return None
        over = total(spent, found) - most
        size = total(objective, found)
        if over <= 0 and 0.1 < size / unit < 10:
            return found
        unit = size or unit
        if over > 0:
            bound -= over + _TOLERANCE * most
        elif size == 0:
            return found
    return found if found is not None and total(spent, found) <= most else None


@contextlib.contextmanager
def _stdout_for_others() -> Iterator[None]:
    """HiGHS (of scipy 1.17) now and then prints a line of its own, past Python: to stderr with it,
    since stdout is for reports."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _programme(objective: Table, spent: Table, bound: float, unit: float) -> list[int] | None:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    counts = [len(row) for row in objective]
    layer = np.repeat(np.arange(len(counts)), counts)
    variables = np.arange(len(layer))
    one_each = csr_array((np.ones(len(layer)), (layer, variables)), (len(counts), len(layer)))
    uses = np.concatenate([np.asarray(row, dtype=float) for row in spent]) / (bound or 1.0)
    with _stdout_for_others():
        solution = milp(
            np.concatenate([np.asarray(row, dtype=float) for row in objective]) / unit,
            integrality=np.ones(len(layer)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(uses[None], -np.inf, 1.0 if bound else 0.0),
            ],
            options={"mip_rel_gap": 0.0, "node_limit": _NODES},
        )
    if solution.x is None:
        return None
    starts = np.cumsum([0, *counts])
    return [int(np.argmax(solution.x[a:b])) for a, b in itertools.pairwise(starts)]
