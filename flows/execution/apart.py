"""Cells of many owners as one plan; where it fails, by halves, down to the one to blame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from modcap.core.messages import first_line
from modcap.flows.execution.execute import Counts, Results
from modcap.flows.execution.progress import Progress
from modcap.flows.requests.request import Ready
from modcap.jobs.job import Cell
from modcap.jobs.plan import CellPlan, Plan

__all__ = ["Computed", "Owned", "execute_apart"]

_Owner = TypeVar("_Owner")
_SERVICES = (BotoCoreError, ClientError)  # of the store: half of the cells fare no better

Run = Callable[[list[Cell]], tuple[Plan, Results, Counts]]


@dataclass(frozen=True)
class Owned(Generic[_Owner]):
    """The cells of one owner."""

    owner: _Owner
    cells: tuple[Ready, ...]


@dataclass(frozen=True)
class Computed(Generic[_Owner]):
    """An owner whose cells are done: each with its part of the plan."""

    owner: _Owner
    cells: tuple[tuple[Ready, CellPlan], ...]
    plan: Plan
    results: Results
    counts: Counts


def execute_apart(
    owned: Sequence[Owned[_Owner]], run: Run, progress: Progress
) -> Iterator[Computed[_Owner] | tuple[_Owner, Exception]]:
    """Runs the cells of all; of each owner what was computed, or why it was not.

    Args:
        owned: whose cells, all of which belong to one plan where nothing fails.
        run: executes a plan; what is done stays done.
        progress: told where it is divided.
    """
    if not owned:
        return
    try:
        plan, results, counts = run([ready.cell for each in owned for ready in each.cells])
    except Exception as error:
        if len(owned) == 1 or isinstance(error, _SERVICES):
            yield from ((each.owner, error) for each in owned)
            return
        progress.note(f"{first_line(error)}: going on with {len(owned)} checkpoints by halves")
        middle = len(owned) // 2
        yield from execute_apart(owned[:middle], run, progress)
        yield from execute_apart(owned[middle:], run, progress)
        return
    planned = iter(plan.cells)
    for each in owned:
        cells = tuple((ready, next(planned)) for ready in each.cells)
        yield Computed(each.owner, cells, plan, results, counts)
