"""``modcap plan``: what a run or a sweep would do. Nothing starts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from modcap.flows.cli.bits import print_bits
from modcap.flows.cli.fields import taking
from modcap.flows.cli.options import (
    OUTPUT,
    Json,
    Preset,
    RecipeFile,
    grid_options,
    make_recipe,
    print_report,
    recipe_options,
    request_options,
)
from modcap.flows.cli.sweep import Archs, Checkpoints, More, make_grid
from modcap.flows.cli.tables import Column, print_table
from modcap.flows.execution import terminal
from modcap.flows.requests.sweep_grid import AXES

__all__ = ["plan"]


@taking(
    axes=grid_options(without=("max_drop", "max_bytes")),
    request=request_options(without=("arch",)),
    given=recipe_options(without=AXES),
)
def plan(
    axes: dict[str, Any],
    request: dict[str, Any],
    given: dict[str, Any],
    checkpoints: Checkpoints = None,
    checkpoint: More = None,
    arch: Archs = None,
    recipe: RecipeFile = None,
    preset: Preset = "quick",
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            help=r"Jobs at once, in the simulation. \[default: 2]",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = 2,
    price_per_hour: Annotated[
        float | None,
        typer.Option(
            help=r"Of one worker: the cost is shown, too. \[default: none]",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            help=r"Write the graph of jobs there, as PNG. \[default: none]",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Show what a run or a sweep would do: jobs, what is done already, time and cost."""
    base = make_recipe(preset, recipe, given)
    places = [*(checkpoints or ()), *(checkpoint or ())]
    grid = make_grid(places, arch or [], axes, recipe=base, **request)
    terminal.doing(f"planning for {', '.join(places)}")
    from modcap.flows.reports.plan_estimate import describe_plan

    print_report(partial(describe_plan, grid, workers, price_per_hour, picture), json_, show)


def show(report: dict[str, Any]) -> None:
    """Jobs by kind, and what they take."""
    print_table(
        None,
        [Column("jobs", "left"), Column("planned"), Column("done")],
        [(kind, str(n["planned"]), str(n["done"])) for kind, n in report["jobs"].items()],
    )
    path, shared, costs = report["critical_path"], report["reconstructions"], report["costs"]
    if report["open"]:
        print("some selections are not made yet: what follows from them is not counted")
    for cell in report["bits"]:
        print_bits(f"bits of {cell['name']}", cell["layer_bits"], cell["allocation"])
    for said in report.get("assumed", ()):
        print(said)
    print(
        f"{shared['distinct']} distinct reconstructions of {shared['independent']} that "
        f"independent runs would make"
    )
    print(
        f"work {report['work_seconds']:.0f} s, critical path {path['seconds']:.0f} s over "
        f"{len(path['jobs'])} jobs"
    )
    cost = f", {report['cost']:.2f} in all" if "cost" in report else ""
    print(
        f"with {report['workers']} workers: {report['seconds']:.0f} s "
        f"(efficiency {report['efficiency']:.0%}{cost})"
    )
    print(f"costs of {costs['measured']} jobs measured, of {costs['probed']} estimated by a probe")
