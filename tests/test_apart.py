"""Of many checkpoints computed together, one that fails costs only itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest
from botocore.exceptions import EndpointConnectionError

from modcap.core.errors import InputError
from modcap.flows.execution.apart import Computed, Owned, execute_apart
from modcap.flows.execution.execute import Counts
from modcap.flows.execution.progress import Progress


@dataclass(frozen=True)
class Planned:
    cells: list[Any]


class Run:
    """Refuses plans with certain cells; cells are strings here."""

    def __init__(self, *errors: tuple[str, Exception]) -> None:
        self.errors = dict(errors)
        self.plans: list[int] = []

    def __call__(self, cells: list[Any]) -> Any:
        self.plans.append(len(cells))
        for cell in cells:
            if cell in self.errors:
                raise self.errors[cell]
        return Planned([f"plan of {cell}" for cell in cells]), {}, Counts()


@dataclass(frozen=True)
class Thing:
    cell: str


def owned(count: int, cells: int = 2) -> list[Owned[int]]:
    things = [
        tuple(cast(Any, Thing(f"{owner}.{cell}")) for cell in range(cells))
        for owner in range(count)
    ]
    return [Owned(owner, found) for owner, found in enumerate(things)]


def outcome(found: Any) -> tuple[int, Any]:
    if isinstance(found, Computed):
        return found.owner, [planned for _, planned in found.cells]
    return cast(tuple[int, Any], found)


def test_all_are_one_plan() -> None:
    run = Run()
    found = dict(map(outcome, execute_apart(owned(5), run, Progress())))
    assert run.plans == [10]
    assert found[3] == ["plan of 3.0", "plan of 3.1"]
    assert list(execute_apart([], run, Progress())) == []


@pytest.mark.parametrize("error", [InputError("wrong"), ValueError("nobody foresaw it")])
def test_one_that_fails_is_found_by_halves(error: Exception) -> None:
    run = Run(("37.1", error))
    found = dict(map(outcome, execute_apart(owned(64), run, Progress())))
    assert found.pop(37) is error
    assert set(found) == set(range(64)) - {37}
    assert found[36] == ["plan of 36.0", "plan of 36.1"]
    assert len(run.plans) == 13  # two for each halving, and the first


def test_a_store_that_is_away_is_asked_once() -> None:
    error = EndpointConnectionError(endpoint_url="http://127.0.0.1:9")
    run = Run(("3.0", error))
    found = dict(map(outcome, execute_apart(owned(8), run, Progress())))
    assert set(map(type, found.values())) == {EndpointConnectionError}
    assert run.plans == [16]
