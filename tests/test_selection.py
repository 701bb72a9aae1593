"""Selection against brute force, and the groups that a mask makes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modcap.core.errors import InputError
from modcap.ptq.capacity import differentials
from modcap.ptq.selection import Span, automatic_k, candidates, explicit, random_k, spans, top_k

BOUNDARIES = st.lists(
    st.tuples(st.floats(0, 1e6, allow_subnormal=False), st.booleans()), min_size=1, max_size=9
)


@given(BOUNDARIES, st.data())
def test_top_k_is_the_best_of_all_masks(
    boundaries: list[tuple[float, bool]], data: st.DataObject
) -> None:
    values = [value for value, _ in boundaries]
    allowed = [free for _, free in boundaries]
    k = data.draw(st.integers(0, sum(allowed)))
    mask = top_k(values, k, allowed)
    assert sum(mask) == k
    assert all(free for free, chosen in zip(allowed, mask, strict=True) if chosen)
    places = [i for i, free in enumerate(allowed) if free]
    best = max(sum(values[i] for i in some) for some in itertools.combinations(places, k))
    assert sum(v for v, m in zip(values, mask, strict=True) if m) == pytest.approx(best)


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=10))
def test_top_k_is_nested(capacities: list[float]) -> None:
    values = differentials(capacities)
    free = [True] * len(values)
    masks = [top_k(values, k, free) for k in range(len(values) + 1)]
    for small, large in itertools.pairwise(masks):
        assert all(b for a, b in zip(small, large, strict=True) if a)


def test_differentials_are_squared_differences_of_neighbours() -> None:
    assert differentials([1.0, 4.0, 2.0]) == [9.0, 4.0]


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_spans_partition_the_modules(mask: list[bool]) -> None:
    groups = spans(mask)
    assert [i for a, b in groups for i in range(a, b)] == list(range(len(mask) + 1))
    assert len(groups) == len(mask) + 1 - sum(mask)
    for a, b in groups:
        assert all(mask[a : b - 1])


def test_neighbouring_boundaries_chain() -> None:
    assert spans([True, True, False]) == (Span(0, 3), Span(3, 4))


def test_too_large_k_names_the_limit_and_the_way_out() -> None:
    with pytest.raises(InputError, match=r"k = 3 is larger than the 1 boundaries.*homogeneity"):
        top_k([1.0, 2.0], 3, [True, False])


def test_random_is_seeded_and_allowed() -> None:
    allowed = [True, False, True, True, False, True]
    assert random_k(2, allowed, 7) == random_k(2, allowed, 7)
    assert len({random_k(2, allowed, seed) for seed in range(30)}) > 1
    assert not any(m and not a for m, a in zip(random_k(4, allowed, 0), allowed, strict=True))


def test_explicit_joins_named_runs() -> None:
    names = ["a", "b", "c", "d"]
    assert explicit([["b", "c", "d"]], names) == (False, True, True)
    with pytest.raises(InputError, match="'x' is unknown; modules are: a, b, c, d"):
        explicit([["a", "x"]], names)
    with pytest.raises(InputError, match="not a run"):
        explicit([["a", "c"]], names)


def test_automatic_k_covers_most_and_joins_at_most_half() -> None:
    assert automatic_k([100.0, 1.0, 1.0, 1.0], [True] * 4) == 1
    assert automatic_k([1.0] * 6, [True] * 6) == 3
    assert automatic_k([5.0, 1.0], [False, False]) == 0


def test_candidates_begin_with_what_capacity_says_none_and_half() -> None:
    assert candidates([1.0, 9.0, 100.0, 1.0, 1.0, 1.0], [True] * 6) == (1, 0, 3, 2)
    assert candidates([1.0] * 7, [True] * 7) == (4, 0, 3, 2, 1)
    assert candidates([1.0] * 6, [True, False, True, False, False, False]) == (2, 0, 1)
    assert candidates([1.0, 2.0], [False, False]) == (0,)
