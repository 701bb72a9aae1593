"""Allocate jobs: the bits of each layer, within a bound (:mod:`modcap.ptq.bit_allocation`).

The plan of a cell that chooses its bits is open until this is done, as it is until boundaries are
selected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from modcap.core.errors import InputError
from modcap.core.named import sparse
from modcap.core.serialization import Result
from modcap.export.artifact_size import artifact_bytes
from modcap.graph.network import Network
from modcap.graph.nodes import weight_layers
from modcap.jobs.job import Cell, Job, Progress, Work
from modcap.jobs.kinds.sensitivity import costs_of, errors_of
from modcap.jobs.worker_cache import WorkerCache
from modcap.ptq.bit_allocation import Table, least, total
from modcap.ptq.sensitivity import Cost, Prediction
from modcap.quantization.bits import FLOAT, WIDTHS, Bits
from modcap.quantization.scheme import Scheme
from modcap.recipe import Allocation, Recipe

__all__ = ["Allocate", "allocate_job", "chosen_bits", "refuse_impossible_bounds"]

_TRIES = 8
_SPREAD = 2.0  # of the logarithms of random importances


class Allocate(Work):
    """Chooses among the bits that each layer may get.

    Attributes:
        by: what it goes by.
        candidates: bits that each weight layer of each module may get.
        budget, max_bytes, max_drop: the bound, which is one of these.
        scheme, preprocess, classes: what the size of the artifact depends on beside.
        seed: of a random choice.
    """

    kind: ClassVar[str] = "allocate"
    small: ClassVar[bool] = True

    by: Literal["sensitivity", "parameters", "random"]
    candidates: tuple[tuple[tuple[Bits, ...], ...], ...]
    budget: float | None = sparse(None)
    max_bytes: int | None = sparse(None)
    max_drop: float | None = sparse(None)
    scheme: Scheme = sparse(Scheme())
    preprocess: str = sparse("")
    classes: tuple[str, ...] = sparse(())
    seed: int | None = sparse(None)

    def run(
        self, job: Job, cache: WorkerCache, needs: Sequence[Result], progress: Progress | None
    ) -> Result:
        """
        Raises:
            InputError: nothing is within the bound.
        """
        network = cache.network(job.inputs["network"])
        if not needs:
            return Result(meta=_Choice(self, network).meta())
        *layers, whole = needs
        measured = [errors_of(result) for result in layers]
        return Result(meta=_Choice(self, network, measured, costs_of(whole)).meta())


class _Choice:
    """Layers in one row, with what each width costs."""

    def __init__(
        self,
        asked: Allocate,
        network: Network,
        measured: Table = (),
        whole: Sequence[Cost] = (),
    ) -> None:
        self.asked, self.network = asked, network
        self.candidates = [bits for layers in asked.candidates for bits in layers]
        self.weights = _weights(network)
        self.errors = self._errors(measured)
        self.prediction = self._prediction(whole) if whole else None

    def _errors(self, measured: Table) -> Table:
        """What each layer adds to the error of the output, at each width. Without measurements it
        falls by the same factor with each bit everywhere (a step of half the size), times an
        importance that is one, or random."""
        if measured:
            found = iter(measured)
            return [[0.0] if bits == (FLOAT,) else next(found) for bits in self.candidates]
        importance = np.ones(len(self.candidates))
        if self.asked.by == "random":
            drawn = np.random.default_rng(self.asked.seed).normal(size=len(self.candidates))
            importance = np.exp(_SPREAD * drawn)
        return [
            [float(scale) * 4.0**-own.weight for own in bits]
            for scale, bits in zip(importance, self.candidates, strict=True)
        ]

    def _prediction(self, whole: Sequence[Cost]) -> Prediction:
        places = range(len(whole))
        sums = [sum(row[min(place, len(row) - 1)] for row in self.errors) for place in places]
        return Prediction.of(sums, whole)

    @property
    def bits(self) -> Table:
        """Of the weights of each layer at each width; those of float ones do not count."""
        return [
            [float(count * own.weight) for own in bits]
            for count, bits in zip(self.weights, self.candidates, strict=True)
        ]

    def meta(self) -> dict[str, Any]:
        chosen = self._chosen()
        bits = self.placed(chosen)
        counted = sum(n for n, own in zip(self.weights, self.candidates, strict=True) if own[0][0])
        said: dict[str, Any] = {
            "bits": bits,
            "average_bits": total(self.bits, chosen) / counted,
            "predicted_bytes": self.bytes_of(bits),
        }
        if self.prediction is not None:
            spent = total(self.errors, chosen)
            share = self.prediction.share(spent)
            said["predicted_error"] = self.prediction.error(spent)
            said["predicted_drop"] = None if share is None else 100 * share
        return said

    def placed(self, chosen: Sequence[int]) -> list[list[Bits]]:
        """The bits of each weight layer of each module."""
        own = iter(bits[place] for bits, place in zip(self.candidates, chosen, strict=True))
        return [[next(own) for _ in layers] for layers in self.asked.candidates]

    def bytes_of(self, bits: Sequence[Sequence[Bits]]) -> int:
        asked = self.asked
        return artifact_bytes(self.network, bits, asked.scheme, asked.preprocess, asked.classes)

    def _chosen(self) -> list[int]:
        if self.asked.budget is not None:
            return self._within_budget(self.asked.budget)
        if self.asked.max_bytes is not None:
            return self._within_bytes(self.asked.max_bytes)
        assert self.asked.max_drop is not None
        return self._within_drop(self.asked.max_drop)

    def _within_budget(self, budget: float) -> list[int]:
        counted = sum(n for n, own in zip(self.weights, self.candidates, strict=True) if own[0][0])
        chosen = least(self.errors, self.bits, budget * counted)
        if chosen is None:
            smallest = sum(map(min, self.bits)) / counted
            raise InputError(
                f"budget {budget:g}: with the bits that are given by name, weights have at least "
                f"{smallest:.4g} on average: give {_upwards(smallest)} or more"
            )
        return chosen

    def _within_bytes(self, most: int) -> list[int]:
        """Beside weights there are names, scales and the graph, whose sizes hardly depend on the
        choice: what it takes too much is taken off once more."""
        sizes = [[float(-(-int(bits) // 8)) for bits in row] for row in self.bits]
        smallest = [row.index(min(row)) for row in sizes]
        beside = self.bytes_of(self.placed(smallest)) - total(sizes, smallest)
        for _ in range(_TRIES):
            chosen = least(self.errors, sizes, most - beside)
            if chosen is None:
                break
            over = self.bytes_of(self.placed(chosen)) - most
            if over <= 0:
                return chosen
            beside += over
        least_bytes = self.bytes_of(self.placed(smallest))
        if least_bytes <= most:
            return smallest
        raise InputError(
            f"max_bytes {most}: the smallest artifact of this network has {least_bytes} bytes: "
            "give as many, or more"
        )

    def _within_drop(self, drop: float) -> list[int]:
        known = self.prediction
        if known is None or known.shares is None:
            raise InputError(
                "max_drop counts answers, and this network has no classes to answer with: give "
                "budget, or max_bytes"
            )
        chosen = least(self.bits, self.errors, known.largest_sum(drop / 100))
        if chosen is None:
            change = f"{100 * known.shares[0]:.3g} %"
            raise InputError(
                f"max_drop {drop:g}: with all the bits that may be chosen, {change} of answers "
                "change by rounding alone: give that or more, or more bits of activations "
                "(a_bits, none)"
            )
        return chosen


def _upwards(bits: float) -> str:
    return f"{-(-bits * 100 // 1) / 100:g}"


def _weights(network: Network) -> list[int]:
    """How many weights each layer has."""
    return [
        module.get_submodule(str(node.target)).weight.numel()  # type: ignore[operator]
        for module in network.partition.modules
        for node in weight_layers(module)
    ]


def _asked(recipe: Recipe, network: Any, known: Any = None) -> Allocate:
    return Allocate(
        by=recipe.allocation.value,
        candidates=recipe.bit_policy.candidates(network, WIDTHS),
        budget=recipe.budget,
        max_bytes=recipe.max_bytes,
        max_drop=recipe.max_drop,
        scheme=recipe.scheme,
        preprocess=known.preprocess if known else "",
        classes=known.classes if known else (),
        seed=recipe.seed if recipe.allocation is Allocation.RANDOM else None,
    )


def allocate_job(cell: Cell, needs: tuple[str, ...]) -> Job:
    """``needs`` hold the sensitivities, if it goes by them."""
    work = _asked(cell.recipe, cell.network, cell.known)
    return Job(work, cell.inputs(), needs, label=f"allocate {cell.name}")


def chosen_bits(result: Result) -> tuple[tuple[Bits, ...], ...]:
    """What an allocate job chose."""
    return tuple(tuple(Bits(*own) for own in layers) for layers in result.meta["bits"])


def refuse_impossible_bounds(network: Network, recipe: Recipe) -> None:
    """Refuses a budget, or a number of bytes, that no choice of bits meets, before anything is
    measured.

    Raises:
        InputError: the line says what is possible.
    """
    if recipe.chooses_bits and recipe.max_drop is None:
        by_size = recipe.model_copy(update={"allocation": Allocation.PARAMETERS})
        _Choice(_asked(by_size, network), network)._chosen()
