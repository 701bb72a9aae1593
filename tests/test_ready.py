"""Which jobs may start: by their needs, for goals that are left, small ones together."""

from __future__ import annotations

from typing import Any, cast

from modcap.flows.execution.ready import Ready
from modcap.jobs.job import Job
from modcap.jobs.kinds.capacity import DataFreeCapacity
from modcap.quantization.bits import Bits


class Large(DataFreeCapacity):
    """What is no small job."""

    small = False


def job(number: int, *needs: Job, large: bool = False) -> Job:
    kind = Large if large else DataFreeCapacity
    work = kind(module=number, bits=(Bits(2, 4),), alpha=1.6)
    return Job(work, {}, tuple(need.key for need in needs), label=f"{number}")


def keys(*jobs: Job) -> set[str]:
    return {each.key for each in jobs}


def test_small_jobs_that_are_ready_together_share_a_batch() -> None:
    first, second, large = job(0), job(1), job(2, large=True)
    later = job(3, large)
    todo = [first, second, large, later]
    ready = Ready(todo, [keys(*todo)])
    assert ready.next() == (first, second)
    assert ready.next() == (large,)
    assert ready.next() is None
    ready.done((large,))
    assert ready.next() == (later,)


def test_needs_that_were_done_before_hinder_nothing() -> None:
    before = job(0)
    after = job(1, before)
    ready = Ready([after], [keys(before, after)])
    assert ready.next() == (after,)


def test_what_failed_together_starts_apart() -> None:
    todo = [job(number) for number in range(3)]
    ready = Ready(todo, [keys(*todo)])
    batch = ready.next()
    assert batch == tuple(todo)
    ready.apart(cast(Any, batch))
    assert [ready.next() for _ in range(4)] == [(todo[0],), (todo[1],), (todo[2],), None]


def test_what_was_stopped_comes_first() -> None:
    todo = [job(number, large=True) for number in range(3)]
    ready = Ready(todo, [keys(*todo)])
    stopped = ready.next()
    ready.again(cast(Any, stopped))
    assert [ready.next() for _ in range(3)] == [(each,) for each in todo]


def test_what_serves_no_goal_is_not_started() -> None:
    bad, shared, own, other = (job(number, large=True) for number in range(4))
    ready = Ready([bad, shared, own, other], [keys(bad, shared, own), keys(shared, other)])
    assert ready.next() == (bad,)
    ready.give_up(bad)
    assert [ready.next() for _ in range(3)] == [(shared,), (other,), None]
    assert ready.wanted
    ready.give_up(shared)
    assert not ready.wanted
    assert ready.next() is None
