"""Simulated plans: list scheduling and the longest chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modcap.jobs.job import Job
from modcap.jobs.kinds.select import SelectExplicit
from modcap.jobs.simulate import critical_path, simulate


def graph(before: Mapping[str, str]) -> tuple[list[Job], dict[str, str], dict[str, list[str]]]:
    """Jobs by name, each with the names of those it follows; their keys, and what they wait for."""
    jobs = {name: Job(SelectExplicit(groups=((name,),)), {}, label=name) for name in before}
    keys = {name: job.key for name, job in jobs.items()}
    waits = {keys[name]: [keys[n] for n in names] for name, names in before.items()}
    return list(jobs.values()), keys, waits


DIAMOND = {"a": "", "b": "a", "c": "a", "d": "bc", "e": ""}
COSTS = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 1.0, "e": 3.0}


@pytest.mark.parametrize(("workers", "makespan"), [(1, 11.0), (2, 8.0), (3, 6.0), (9, 6.0)])
def test_whatever_is_ready_runs_in_plan_order(workers: int, makespan: float) -> None:
    jobs, keys, waits = graph(DIAMOND)
    costs = {keys[name]: seconds for name, seconds in COSTS.items()}
    found = simulate(jobs, waits, costs, workers)
    assert (found.makespan, found.busy, found.workers) == (makespan, 11.0, workers)
    assert found.efficiency == pytest.approx(11 / (workers * makespan))


def test_the_longest_chain() -> None:
    jobs, keys, waits = graph(DIAMOND)
    seconds, path = critical_path(jobs, waits, {keys[n]: s for n, s in COSTS.items()})
    assert seconds == 6.0
    assert [job.label for job in path] == ["a", "c", "d"]
    assert critical_path([], {}, {}) == (0.0, [])


def test_what_is_done_already_is_not_waited_for() -> None:
    jobs, keys, waits = graph(DIAMOND)
    costs = {keys[name]: seconds for name, seconds in COSTS.items()}
    left = [job for job in jobs if job.label in "bd"]
    assert simulate(left, waits, costs, 2).makespan == 3.0
    assert critical_path(left, waits, costs)[0] == 3.0
    assert simulate([], waits, costs, 2).efficiency == 1.0


@given(
    st.lists(st.tuples(st.integers(1, 20), st.sets(st.integers(0, 11))), min_size=1, max_size=12),
    st.integers(1, 5),
)
def test_a_schedule_keeps_the_bounds_of_list_scheduling(
    drawn: Sequence[tuple[int, set[int]]], workers: int
) -> None:
    """Graham (1966): no less than the chain or the share of work, no more than both together."""
    names = "abcdefghijkl"
    before = {names[i]: "".join(names[j] for j in on if j < i) for i, (_, on) in enumerate(drawn)}
    jobs, keys, waits = graph(before)
    costs = {keys[names[i]]: float(cost) for i, (cost, _) in enumerate(drawn)}
    chain, _ = critical_path(jobs, waits, costs)
    found = simulate(jobs, waits, costs, workers)
    work = sum(costs.values())
    assert max(chain, work / workers) <= found.makespan + 1e-9
    assert found.makespan <= work / workers + (1 - 1 / workers) * chain + 1e-9
