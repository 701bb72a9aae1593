"""``modcap sweep``: a grid as one plan."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import typer

from modcap.core.errors import InputError, printable
from modcap.core.messages import parse
from modcap.flows.cli.fields import taking
from modcap.flows.cli.options import (
    INPUT,
    Json,
    Preset,
    RecipeFile,
    grid_options,
    make_recipe,
    print_report,
    recipe_options,
    request_in_s3,
    request_options,
)
from modcap.flows.cli.services import connect_services
from modcap.flows.cli.tables import Column, print_table, print_warnings
from modcap.flows.execution import terminal
from modcap.flows.requests.asked import Request
from modcap.flows.requests.sweep_grid import AXES, Sweep
from modcap.ptq.measured import Scale

__all__ = ["Archs", "Checkpoints", "More", "make_grid", "sweep"]

Checkpoints = Annotated[
    list[str] | None,
    typer.Argument(help="Local paths or s3:// addresses of checkpoints; one or more."),
]
More = Annotated[
    list[str] | None,
    typer.Option(
        "--checkpoint",
        help=r"A checkpoint, too; may be repeated. \[default: none]",
        show_default=False,
        rich_help_panel=INPUT,
    ),
]
Archs = Annotated[
    list[str] | None,
    typer.Option(
        "--arch",
        help="torchvision:NAME, timm:NAME or package.module:factory, for all checkpoints; "
        r"or repeated, one for each. \[default: none, for .pt2]",
        show_default=False,
        rich_help_panel=INPUT,
    ),
]


def make_grid(
    checkpoints: list[str], arch: list[str], axes: Mapping[str, Any], **fields: Any
) -> Sweep:
    """A request for each checkpoint; ``arch`` is none, one for all, or one for each.

    Raises:
        InputError: there is no checkpoint, or a field is wrong.
    """
    if not checkpoints:
        raise InputError("no checkpoint is named: give one or more, such as net.pt2")
    archs: list[str | None] = [*arch] or [None]
    if len(archs) == 1:
        archs *= len(checkpoints)
    if len(archs) != len(checkpoints):
        raise InputError(
            f"--arch: {len(archs)} for {len(checkpoints)} checkpoints: give one for all, or one "
            "each"
        )
    requests = tuple(
        parse(Request, {"checkpoint": c, "arch": a, **fields})
        for c, a in zip(checkpoints, archs, strict=True)
    )
    return parse(Sweep, {"requests": requests, **axes})


@taking(
    axes=grid_options(),
    request=request_options(without=("arch",)),
    given=recipe_options(without=(*AXES, "max_drop", "max_bytes")),
)
def sweep(
    axes: dict[str, Any],
    request: dict[str, Any],
    given: dict[str, Any],
    checkpoints: Checkpoints = None,
    checkpoint: More = None,
    arch: Archs = None,
    recipe: RecipeFile = None,
    preset: Preset = "quick",
    json_: Json = False,
) -> None:
    """Quantize a grid of bit-widths, k and seeds, compare all cells and register the best."""
    base = make_recipe(preset, recipe, given)
    places = [*(checkpoints or ()), *(checkpoint or ())]
    grid = make_grid(places, arch or [], axes, recipe=base, **request)
    terminal.doing(f"reading {', '.join(places)}")
    _check(grid)
    connect_services()
    from modcap.flows.sweep import sweep as flow

    print_report(partial(flow, grid), json_, show)


def _check(grid: Sweep) -> None:
    """Refuses bad input before anything starts, where it can be read without a server."""
    from modcap.flows.requests.sweep_grid import prepare_sweep

    if not any(request_in_s3(request) for request in grid.requests):
        prepare_sweep(grid)


def show(report: dict[str, Any]) -> None:
    """Every cell, the best ones marked."""
    print_warnings(text for row in report["cells"] for text in row.get("warnings", ()))
    left = ("model", "bits", "method", "note")
    names = ("model", "bits", "method", "k", "seed", _measured(report), "drop", "error", "bytes")
    best = set(report["best"].values())
    print_table(
        None,
        [Column(name, "left" if name in left else "right") for name in (*names, "note")],
        [_row(row, best) for row in report["cells"]],
    )
    jobs, shared = report["jobs"], report["reconstructions"]
    for row in report["cells"]:
        if row["state"] == "failed":
            print(printable(f"failed: {row['name']}: {row['reason']}"))
    outputs = any(row.get("outputs") for row in report["cells"])
    said = "outputs" if outputs else "logits"
    print(f"error: relative error of the {said}, on calibration images")
    print(
        f"jobs: {jobs['planned']} planned, {jobs['executed']} executed, {jobs['reused']} reused; "
        f"{report['seconds']:.1f} s"
    )
    print(
        f"{shared['distinct']} distinct reconstructions of {shared['independent']} that "
        f"independent runs would make"
    )
    for row in report["cells"]:
        if row["name"] in best and "model_version" in row:
            print(printable(f"registered: {row['model_name']} version {row['model_version']}"))
    print(f"MLflow run: {report['mlflow_run_url']}")


def _measured(report: dict[str, Any]) -> str:
    """What the figures are."""
    finished = (row for row in report["cells"] if row["state"] == "finished")
    return " or ".join(dict.fromkeys(Scale.of(row).metric_title for row in finished)) or "top-1 %"


def _row(row: dict[str, Any], best: set[str | None]) -> tuple[str, ...]:
    method = row["recipe"]["method"]
    method = method if isinstance(method, str) else method["name"]
    asked = (row["label"], row["bits"], method)
    seed = str(row["recipe"]["seed"])
    if row["state"] == "failed":
        return *asked, row["k_asked"], seed, "", "", "", "", "failed"
    scale = Scale.of(row)
    return (
        *asked,
        row["k_asked"] if row["k_asked"] != "auto" else f"auto {row['k']}",
        seed,
        scale.text(scale.value(row)),
        scale.text(row["drop"]),
        f"{row['final_error']:.3g}",
        f"{row['artifact_bytes']:,}",
        f"best: v{row['model_version']}" if row["name"] in best else "",
    )
