"""Select jobs: which boundaries are joined, given the capacities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from modcap.core.named import sparse
from modcap.core.serialization import Result
from modcap.graph.partition import Partition
from modcap.jobs.job import Cell, Job, Progress, Work
from modcap.jobs.kinds.capacity import capacities_of
from modcap.jobs.worker_cache import WorkerCache
from modcap.ptq import capacity, selection
from modcap.recipe import CapacityScale, Homogeneity, Selection

__all__ = ["Select", "SelectExplicit", "select_job", "selected"]


class _Selects(Work):
    kind: ClassVar[str] = "select"
    small: ClassVar[bool] = True

    def run(
        self, job: Job, cache: WorkerCache, needs: Sequence[Result], progress: Progress | None
    ) -> Result:
        partition = cache.network(job.inputs["network"]).partition
        return Result(meta=self.choose(partition, capacities_of(needs)))

    def choose(self, partition: Partition, capacities: Sequence[float]) -> dict[str, Any]:
        raise NotImplementedError


class SelectExplicit(_Selects):
    """The groups that the recipe names."""

    selection: Literal["explicit"] = "explicit"
    groups: tuple[tuple[str, ...], ...]

    def choose(self, partition: Partition, capacities: Sequence[float]) -> dict[str, Any]:
        mask = selection.explicit(self.groups, partition.names)
        differences = _differences(capacities, len(mask))
        return _meta(capacities, differences, [True] * len(mask), mask)


class Select(_Selects):
    """The largest differentials, or random boundaries (MRECG, eq. 9).

    Attributes:
        selection: top-k or random.
        k: how many; None chooses.
        homogeneity: which neighbours may be compared; None is any.
        capacity_scale: on which capacities are compared; None is as they are.
        seed: of random boundaries.
    """

    selection: Literal["top-k", "random"]
    k: int | None
    homogeneity: Homogeneity | None = sparse(None)
    capacity_scale: CapacityScale | None = sparse(None)
    seed: int | None = sparse(None)

    def choose(self, partition: Partition, capacities: Sequence[float]) -> dict[str, Any]:
        count = len(partition.modules) - 1
        compared = list(capacities)
        if self.capacity_scale is CapacityScale.LOG:
            compared = [math.log(max(abs(v), 1e-30)) for v in capacities]
        differences = _differences(compared, count)
        allowed = [True] * count
        if self.homogeneity is Homogeneity.PAPER:
            allowed = capacity.homogeneous(partition.modules)
        k = selection.automatic_k(differences, allowed) if self.k is None else self.k
        if self.selection == "random":
            mask = selection.random_k(k, allowed, self.seed or 0)
        else:
            mask = selection.top_k(differences, k, allowed)
        meta = _meta(capacities, differences, allowed, mask)
        if self.selection == "top-k" and self.k is None and capacities:
            masks = (
                selection.top_k(differences, k, allowed)
                for k in selection.candidates(differences, allowed)
            )
            meta["candidates"] = [selected(mask)["groups"] for mask in masks]
        return meta


def _differences(capacities: Sequence[float], count: int) -> list[float]:
    return capacity.differentials(capacities) if capacities else [0.0] * count


def _meta(
    capacities: Sequence[float],
    differences: Sequence[float],
    allowed: Sequence[bool],
    mask: Sequence[bool],
) -> dict[str, Any]:
    return {
        "capacities": list(capacities),
        "differentials": list(differences),
        "allowed": list(allowed),
        **selected(mask),
    }


def selected(mask: Sequence[bool]) -> dict[str, Any]:
    """What a selection says of the boundaries that it joins."""
    return {
        "selected": list(mask),
        "k": sum(mask),
        "groups": [list(span) for span in selection.spans(mask)],
    }


def select_job(cell: Cell, capacities: tuple[str, ...]) -> Job:
    """The selection of ``cell``, which needs the jobs ``capacities``."""
    return Job(_select(cell), cell.inputs(), capacities, label=f"select {cell.name}")


def _select(cell: Cell) -> Work:
    recipe = cell.recipe
    if recipe.selection is Selection.EXPLICIT:
        return SelectExplicit(groups=recipe.groups)
    if not recipe.method.needs_capacity:
        return Select(selection="top-k", k=0)
    random = recipe.selection is Selection.RANDOM
    return Select(
        selection="random" if random else "top-k",
        k=recipe.k,
        homogeneity=recipe.homogeneity,
        capacity_scale=recipe.capacity_scale,
        seed=recipe.seed if random else None,
    )
