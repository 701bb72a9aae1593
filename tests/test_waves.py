"""Segments cover the chain once, and their paths stay within the limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modcap.jobs.waves import Segment, segments

COSTS = st.lists(st.floats(0.1, 100), min_size=1, max_size=40)


@given(COSTS, st.floats(0, 1))
def test_segments_cover_the_chain_within_the_limit(costs: list[float], share: float) -> None:
    found = segments(costs, share)
    assert [i for s in found for i in range(s.start, s.stop)] == list(range(len(costs)))
    limit = max(share * sum(costs), *costs, 0) * (1 + 1e-6)
    assert all(0 <= s.first <= s.start for s in found)
    assert all(sum(costs[s.first : s.stop]) <= limit for s in found)


@given(COSTS)
def test_share_zero_is_every_module_alone(costs: list[float]) -> None:
    assert segments(costs, 0) == tuple(Segment(i, i, i + 1) for i in range(len(costs)))


@given(COSTS, st.floats(0, 1))
def test_the_work_at_most_doubles(costs: list[float], share: float) -> None:
    found = segments(costs, share)
    assert sum(sum(costs[s.first : s.stop]) for s in found) <= 2 * sum(costs) * (1 + 1e-6)


def test_equal_modules_lead_in_where_a_fifth_holds_two() -> None:
    found = segments([1.0] * 10, 0.2)
    assert [s.start - s.first for s in found] == [0] + [1] * 9
