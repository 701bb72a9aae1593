"""``modcap sweep`` and ``modcap plan``: a grid as one plan."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from modcap.core.errors import InputError
from modcap.flows.cli.options import (
    Calibration,
    Classes,
    Data,
    Iterations,
    Json,
    Preprocess,
    Preset,
    RecipeFile,
    Tuning,
    in_s3,
    make_recipe,
    print_report,
)
from modcap.ptq.methods import MethodName
from modcap.recipe import CapacityKind, Homogeneity, Schedule, Selection

__all__ = ["plan", "sweep"]

Checkpoints = Annotated[
    list[str], typer.Option("--checkpoint", help="Path or s3:// address; may be repeated.")
]
Archs = Annotated[
    list[str] | None, typer.Option("--arch", help="For all checkpoints, or one for each.")
]
Axis = Annotated[str | None, typer.Option(help="Values such as 2,3,4 or 0-7.")]
Ks = Annotated[str | None, typer.Option(help="Values such as 0-7, or auto, or both: 0-3,auto.")]
Methods = Annotated[list[MethodName] | None, typer.Option("--method", help="May be repeated.")]
MaxDrop = Annotated[float | None, typer.Option(help="Points of top-1 that the best may lose.")]
MaxBytes = Annotated[int | None, typer.Option(help="Bytes that the best may take.")]


def make_requests(checkpoint: list[str], arch: list[str] | None, **fields: Any) -> tuple[Any, ...]:
    """A request for each checkpoint; ``arch`` is none, one for all, or one for each."""
    from modcap.core.messages import parse
    from modcap.flows.requests.request import Request

    archs: list[str | None] = list(arch) if arch else [None]
    if len(archs) == 1:
        archs *= len(checkpoint)
    if len(archs) != len(checkpoint):
        raise InputError(
            f"--arch: {len(archs)} for {len(checkpoint)} checkpoints: give one for all, or one each"
        )
    return tuple(
        parse(Request, {"checkpoint": c, "arch": a, **fields})
        for c, a in zip(checkpoint, archs, strict=True)
    )


def parse_axes(
    *, w_bits: str | None, a_bits: str | None, k: str | None, seeds: str | None
) -> dict[str, tuple[int | None, ...]]:
    """The axes that were given, by field of the sweep; that of k may hold ``auto``, too."""
    from modcap.flows.requests.sweep_grid import parse_range

    typed = {"w_bits": w_bits, "a_bits": a_bits, "seed": seeds}
    flags = {"w_bits": "--w-bits", "a_bits": "--a-bits", "seed": "--seeds"}
    found: dict[str, tuple[int | None, ...]] = {
        name: parse_range(text, flags[name]) for name, text in typed.items() if text is not None
    }
    if k is not None:
        parts = k.split(",")
        numbers = [part for part in parts if part.strip() != "auto"]
        auto = (None,) if len(numbers) < len(parts) else ()
        found["k"] = (*(parse_range(",".join(numbers), "--k") if numbers else ()), *auto)
    return found


def sweep(
    checkpoint: Checkpoints,
    data: Data,
    arch: Archs = None,
    w_bits: Axis = None,
    a_bits: Axis = None,
    k: Ks = None,
    seeds: Axis = None,
    method: Methods = None,
    capacity: CapacityKind | None = None,
    selection: Selection | None = None,
    homogeneity: Homogeneity | None = None,
    schedule: Schedule | None = None,
    iterations: Iterations = None,
    tuning: Tuning = None,
    calibration: Calibration = None,
    recipe: RecipeFile = None,
    preset: Preset = "quick",
    eval_images: Annotated[int | None, typer.Option(help="Test images; all by default.")] = None,
    preprocess: Preprocess = None,
    classes: Classes = None,
    max_drop: MaxDrop = None,
    max_bytes: MaxBytes = None,
    json_: Json = False,
) -> None:
    """Quantize a grid of bit-widths, k and seeds, compare all cells and register the best."""
    from modcap.core.messages import parse
    from modcap.flows.execution.connect import use_services
    from modcap.flows.requests.sweep_grid import Sweep

    base = make_recipe(
        preset,
        recipe,
        capacity=capacity,
        selection=selection,
        homogeneity=homogeneity,
        schedule=schedule,
        iterations=iterations,
        tuning=tuning,
        calibration=calibration,
    )
    images = {"data": data, "preprocess": preprocess, "classes": classes}
    requests = make_requests(checkpoint, arch, recipe=base, eval_images=eval_images, **images)
    fields = {
        "requests": requests,
        "method": tuple(method or ()),
        "max_drop": max_drop,
        "max_bytes": max_bytes,
        **parse_axes(w_bits=w_bits, a_bits=a_bits, k=k, seeds=seeds),
    }
    grid = parse(Sweep, fields)
    _check(grid)
    use_services()
    from modcap.flows.sweep import sweep as flow

    print_report(partial(flow, grid), json_, _print)


def _check(grid: Any) -> None:
    """Refuses bad input before anything starts, where it can be read without a server."""
    from modcap.flows.requests.sweep_grid import prepare_sweep

    places = [place for request in grid.requests for place in (request.checkpoint, request.data)]
    if not in_s3(*places):
        prepare_sweep(grid)


def _print(report: dict[str, Any]) -> None:
    console = Console()
    table = Table(title_justify="left")
    left = ("model", "bits", "method")
    for heading in (*left[:3], "k", "seed", "top-1 %", "drop", "bytes", "oscillation"):
        table.add_column(heading, justify="left" if heading in left else "right")
    best = set(report["best"].values())
    for row in report["cells"]:
        asked = (row["model_name"], row["bits"], row["recipe"]["method"])
        seed = str(row["recipe"]["seed"])
        if row["state"] == "failed":
            table.add_row(*asked, row["k_asked"], seed, "", "", "", "", f"failed: {row['reason']}")
            continue
        table.add_row(
            *asked,
            row["k_asked"] if row["k_asked"] != "auto" else f"auto: {row['k']}",
            seed,
            f"{row['top1']:.2f}",
            f"{row['drop']:.2f}",
            f"{row['artifact_bytes']:,}",
            f"{row['oscillation']:.3f}",
            f"best: version {row['model_version']}" if row["name"] in best else "",
        )
    console.print(table)
    jobs, shared = report["jobs"], report["reconstructions"]
    console.print(
        f"jobs: {jobs['planned']} planned, {jobs['executed']} executed, {jobs['reused']} reused; "
        f"{shared['distinct']} distinct reconstructions of {shared['independent']} that "
        f"independent runs would make ({shared['ratio']:.2f}); {report['seconds']:.1f} s",
        soft_wrap=True,
    )
    console.print(f"MLflow run: {report['mlflow_run_url']}", soft_wrap=True, markup=False)


def plan(
    checkpoint: Checkpoints,
    data: Data,
    arch: Archs = None,
    w_bits: Axis = None,
    a_bits: Axis = None,
    k: Ks = None,
    seeds: Axis = None,
    method: Methods = None,
    capacity: CapacityKind | None = None,
    selection: Selection | None = None,
    homogeneity: Homogeneity | None = None,
    schedule: Schedule | None = None,
    iterations: Iterations = None,
    tuning: Tuning = None,
    calibration: Calibration = None,
    recipe: RecipeFile = None,
    preset: Preset = "quick",
    preprocess: Preprocess = None,
    classes: Classes = None,
    workers: Annotated[int, typer.Option(min=1, help="Jobs at once, in the simulation.")] = 2,
    price_per_hour: Annotated[float | None, typer.Option(help="Of one worker.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write the graph there, as PNG.")] = None,
    json_: Json = False,
) -> None:
    """Show what a run or a sweep would do: jobs, what is done already, time and cost."""
    from modcap.core.messages import parse
    from modcap.flows.reports.plan_estimate import describe_plan
    from modcap.flows.requests.sweep_grid import Sweep

    base = make_recipe(
        preset,
        recipe,
        capacity=capacity,
        selection=selection,
        homogeneity=homogeneity,
        schedule=schedule,
        iterations=iterations,
        tuning=tuning,
        calibration=calibration,
    )
    images = {"data": data, "preprocess": preprocess, "classes": classes}
    fields = {
        "requests": make_requests(checkpoint, arch, recipe=base, **images),
        "method": tuple(method or ()),
        **parse_axes(w_bits=w_bits, a_bits=a_bits, k=k, seeds=seeds),
    }
    grid = parse(Sweep, fields)
    print_report(partial(describe_plan, grid, workers, price_per_hour, picture), json_, _show_plan)


def _show_plan(report: dict[str, Any]) -> None:
    table = Table(title_justify="left")
    for heading in ("jobs", "planned", "done"):
        table.add_column(heading, justify="left" if heading == "jobs" else "right")
    for kind, counts in report["jobs"].items():
        table.add_row(kind, str(counts["planned"]), str(counts["done"]))
    console = Console()
    console.print(table)
    path, shared = report["critical_path"], report["reconstructions"]
    if report["open"]:
        console.print("some selections are not made yet: what follows from them is not counted")
    console.print(
        f"{shared['distinct']} distinct reconstructions of {shared['independent']} that "
        f"independent runs would make",
        soft_wrap=True,
    )
    console.print(
        f"work {report['work_seconds']:.0f} s, critical path {path['seconds']:.0f} s over "
        f"{len(path['jobs'])} jobs",
        soft_wrap=True,
    )
    cost = f", {report['cost']:.2f} in all" if "cost" in report else ""
    console.print(
        f"with {report['workers']} workers: {report['seconds']:.0f} s "
        f"(efficiency {report['efficiency']:.0%}{cost}); "
        f"costs of {report['costs']['measured']} jobs measured, {report['costs']['probed']} probed",
        soft_wrap=True,
    )
