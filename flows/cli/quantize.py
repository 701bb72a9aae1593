"""``modcap quantize``."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from modcap.flows.cli.options import (
    Arch,
    Calibration,
    Checkpoint,
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
    parse_k,
    print_report,
)
from modcap.ptq.methods import MethodName
from modcap.recipe import CapacityKind, Homogeneity, Recipe, Schedule, Selection

__all__ = ["quantize"]


def quantize(
    checkpoint: Checkpoint,
    data: Data,
    arch: Arch = None,
    w_bits: Annotated[int | None, typer.Option(help="Bits of weights, 2 to 8.")] = None,
    a_bits: Annotated[int | None, typer.Option(help="Bits of activations, 2 to 8.")] = None,
    k: Annotated[str | None, typer.Option(help="Boundaries to select, or 'auto'.")] = None,
    method: MethodName | None = None,
    capacity: CapacityKind | None = None,
    selection: Selection | None = None,
    homogeneity: Homogeneity | None = None,
    schedule: Schedule | None = None,
    iterations: Iterations = None,
    tuning: Tuning = None,
    calibration: Calibration = None,
    seed: int | None = None,
    recipe: RecipeFile = None,
    preset: Preset = "quick",
    eval_data: Annotated[str | None, typer.Option(help="Test images, if elsewhere.")] = None,
    eval_images: Annotated[int | None, typer.Option(help="How many; all by default.")] = None,
    preprocess: Preprocess = None,
    classes: Classes = None,
    name: Annotated[str | None, typer.Option(help="Name of the registered model.")] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Register the ONNX form too.")] = False,
    compare: Annotated[bool, typer.Option(help="Also run rounding to nearest and k = 0.")] = True,
    json_: Json = False,
) -> None:
    """Quantize one checkpoint, register the result in MLflow and print a report."""
    from modcap.core.messages import parse
    from modcap.flows.execution.connect import use_services
    from modcap.flows.requests.request import Request, prepare

    full = make_recipe(
        preset,
        recipe,
        w_bits=w_bits,
        a_bits=a_bits,
        method=method,
        capacity=capacity,
        selection=selection,
        homogeneity=homogeneity,
        schedule=schedule,
        iterations=iterations,
        tuning=tuning,
        calibration=calibration,
        seed=seed,
    )
    full = Recipe.make(parse_k(k), full)
    fields = {
        "checkpoint": checkpoint,
        "arch": arch,
        "data": data,
        "eval_data": eval_data,
        "eval_images": eval_images,
        "preprocess": preprocess,
        "classes": classes,
        "name": name,
        "onnx": onnx,
        "recipe": full,
    }
    request = parse(Request, fields)
    if not in_s3(checkpoint, data, eval_data, classes):
        prepare(request)  # bad input is refused before anything starts
    use_services()
    from modcap.flows.quantize import quantize as flow

    print_report(partial(flow, request, compare), json_, _show)


def _show(report: dict[str, Any]) -> None:
    console = Console()
    title = f"{report['model_name']} version {report['model_version']}: {report['bits']}"
    table = Table(title=title, title_justify="left")
    for heading in ("variant", "top-1 %", "drop", "oscillation", "groups", "bytes"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for row in report["comparison"]:
        quantized = "drop" in row
        table.add_row(
            row["variant"],
            f"{row['top1']:.2f}",
            f"{row['drop']:.2f}" if quantized else "",
            f"{row['oscillation']:.3f}" if quantized else "",
            str(row["groups"]) if quantized else "",
            f"{row['artifact_bytes']:,}" if quantized else f"{report['fp_bytes']:,}",
        )
    console.print(table)
    jobs = report["jobs"]
    console.print(
        f"jobs: {jobs['planned']} planned, {jobs['executed']} executed, {jobs['reused']} reused; "
        f"{report['seconds']:.1f} s; {report['images']} test images",
        soft_wrap=True,
    )
    console.print(f"MLflow run: {report['mlflow_run_url']}", soft_wrap=True, markup=False)
    console.print(f"artifact:   {report['artifact']}", soft_wrap=True, markup=False)
