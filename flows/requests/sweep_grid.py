"""The grid of a sweep, and its cells. Reading it waits neither for torch nor for a client."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modcap.core.errors import InputError
from modcap.flows.requests.asked import Request
from modcap.ptq.methods import MethodName
from modcap.recipe import Recipe

if TYPE_CHECKING:
    from modcap.flows.requests.request import Prepared
    from modcap.jobs.plan import Plan

__all__ = ["AXES", "Sweep", "parse_range", "prepare_sweep", "sharing"]


AXES = ("seed", "method", "w_bits", "budget", "a_bits", "k")
"""Of a grid, in the order of its cells."""


class Sweep(BaseModel):
    """A grid. An empty axis keeps what the recipes of ``requests`` say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: tuple[Request, ...] = Field(min_length=1, description="one per checkpoint")
    w_bits: tuple[int | Literal["auto"], ...] = Field(
        (),
        description="bits of weights, such as 2,3,4 or 2-4, or auto, which chooses those of each "
        "layer; by default those of the recipe",
    )
    a_bits: tuple[int | Literal["none"], ...] = Field(
        (),
        description="bits of activations, likewise, or none; by default those of the recipe",
    )
    budget: tuple[float, ...] = Field(
        (),
        description="where bits are auto, bits of a weight on average, such as 2.5,3,4; by default "
        "that of the recipe",
    )
    k: tuple[int | None, ...] = Field(
        (),
        description="boundaries to select, such as 0-3,auto (null in a file is auto); by default "
        "that of the recipe",
    )
    method: tuple[MethodName, ...] = Field(
        (), description="methods, each by an option of its own; by default that of the recipe"
    )
    seed: tuple[int, ...] = Field(
        (), description="seeds, such as 0-2; by default that of the recipe"
    )
    max_drop: float | None = Field(
        None, ge=0, description="points of top-1, or of the metric, that the best cell may lose"
    )
    max_bytes: int | None = Field(None, ge=1, description="bytes that the best cell may take")

    @model_validator(mode="after")
    def _models_differ(self) -> Sweep:
        counts = Counter(request.label for request in self.requests)
        name, count = counts.most_common(1)[0]
        if count > 1:
            raise ValueError(f"{count} checkpoints are called {name!r}: rename all but one of them")
        return self

    def on(self, gpu: bool) -> Sweep:
        """The same with a device that is known; see :meth:`modcap.recipe.Recipe.on`."""
        requests = tuple(request.on(gpu) for request in self.requests)
        return self.model_copy(update={"requests": requests})

    @property
    def label(self) -> str:
        """What it is called: its checkpoints, and what varies, such as ``net w_bits × k``."""
        names = [request.label for request in self.requests]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
        return f"{shown} {' × '.join(name for name in AXES if getattr(self, name))}".rstrip()

    def recipes(self, base: Recipe) -> list[Recipe]:
        """The recipes of the grid over ``base``, without repetition, in the order of the axes."""
        axes = {name: getattr(self, name) for name in AXES}
        given = {name: values for name, values in axes.items() if values}
        if "budget" in given and "auto" not in (self.w_bits or (base.w_bits,)):
            raise InputError("budget is for w_bits auto: name auto among the w_bits, or no budget")
        made = [
            Recipe.make(_bounded(dict(zip(given, values, strict=True)), base), base)
            for values in itertools.product(*given.values())
        ]
        return list(dict.fromkeys(made))


def _bounded(values: dict[str, Any], base: Recipe) -> dict[str, Any]:
    """Without bounds of bits where these are not chosen, and with one where they are."""
    none = dict.fromkeys(("budget", "max_bytes", "max_drop"))
    if values.get("w_bits", base.w_bits) != "auto":
        return values | none
    return none | values if "budget" in values else values


def prepare_sweep(grid: Sweep, read: Callable[[Request], Prepared] | None = None) -> list[Prepared]:
    """Every cell; a checkpoint is read once per seed, which chooses its calibration images. Exports
    are for the best alone, which is not known yet.

    Args:
        grid: what is asked for.
        read: in the place of :func:`modcap.flows.requests.request.prepare`.
    """
    from modcap.flows.requests.request import prepare

    prepared: list[Prepared] = []
    for request in grid.requests:
        bases: dict[int, Prepared] = {}
        for recipe in grid.recipes(request.recipe):
            if recipe.seed not in bases:
                first = request.model_copy(update={"recipe": recipe})
                bases[recipe.seed] = (read or prepare)(first).exporting(())
            name = (
                f"{request.label} {recipe.bits_label} {recipe.method.name} "
                f"k={recipe.k_asked} seed={recipe.seed}"
            )
            prepared.append(bases[recipe.seed].with_recipe(recipe, name))
    return prepared


def sharing(plan: Plan) -> dict[str, int]:
    """Reconstructions: distinct ones, and those that independent runs of the cells would make."""
    needed = [plan.reconstructions(cell) for cell in plan.cells]
    return {"distinct": len(set().union(*needed)), "independent": sum(map(len, needed))}


def parse_range(text: str, flag: str) -> tuple[int, ...]:
    """``2,3,4`` or ``0-7`` or both: ``0-3,5``.

    Raises:
        InputError: it is something else.
    """
    values: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InputError(f"{flag} {text!r}: give numbers and ranges, such as 2,3,4 or 0-7")
        stop = int(last) if dash else int(first)
        if stop < int(first):
            raise InputError(f"{flag} {text!r}: the range {part.strip()} is empty")
        values += range(int(first), stop + 1)
    return tuple(dict.fromkeys(values))
