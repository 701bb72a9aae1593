"""``modcap capacity`` and ``modcap evaluate``: they start no server."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from modcap.flows.cli.options import (
    Arch,
    Checkpoint,
    Classes,
    Data,
    Json,
    Preprocess,
    Preset,
    RecipeFile,
    in_s3,
    make_recipe,
    parse_k,
    print_report,
)
from modcap.recipe import CapacityKind, Recipe

__all__ = ["capacity", "evaluate"]


def capacity(
    checkpoint: Checkpoint,
    data: Data,
    arch: Arch = None,
    w_bits: Annotated[int | None, typer.Option(help="Bits of weights, 2 to 8.")] = None,
    k: Annotated[str | None, typer.Option(help="Boundaries to select, or 'auto'.")] = None,
    capacity: CapacityKind | None = None,
    recipe: RecipeFile = None,
    preset: Preset = "quick",
    preprocess: Preprocess = None,
    classes: Classes = None,
    json_: Json = False,
) -> None:
    """Show the capacity of every module and the boundaries it selects; starts no server."""
    from modcap.core.messages import parse
    from modcap.flows.execution.connect import find_s3
    from modcap.flows.reports.capacities import measure_capacity
    from modcap.flows.requests.request import Request

    full = make_recipe(preset, recipe, w_bits=w_bits, capacity=capacity)
    full = Recipe.make(parse_k(k), full)
    fields = {"checkpoint": checkpoint, "arch": arch, "data": data, "preprocess": preprocess}
    fields["classes"] = classes
    if in_s3(checkpoint, data, classes):
        find_s3()
    request = parse(Request, fields | {"recipe": full})
    print_report(partial(measure_capacity, request), json_, _show_capacities)


def _show_capacities(report: dict[str, Any]) -> None:
    table = Table(title=f"k = {report['k']}", title_justify="left")
    for heading in ("module", "capacity", "differential to the next"):
        table.add_column(heading, justify="right" if heading.startswith(("c", "d")) else "left")
    marks = [
        "joined" if chosen else "" if homogeneous else "not homogeneous"
        for chosen, homogeneous in zip(report["selected"], report["homogeneous"], strict=True)
    ]
    for row in zip(
        report["modules"],
        [f"{value:.4g}" for value in report["capacities"]],
        [*(f"{value:.4g}" for value in report["differentials"]), ""],
        [*marks, ""],
        strict=True,
    ):
        table.add_row(*row)
    Console().print(table)


def evaluate(
    artifact: Annotated[
        str,
        typer.Argument(help="Artifact, ONNX file or pt2 archive: a path, s3:// or models:/NAME@x."),
    ],
    data: Data,
    preprocess: Preprocess = None,
    eval_images: int | None = None,
    classes: Classes = None,
    json_: Json = False,
) -> None:
    """Measure top-1, latency and bytes of a quantized artifact, or of an export of one."""
    from modcap.flows.execution.connect import find_s3, use_services
    from modcap.flows.registry.accuracy import evaluate_artifact
    from modcap.flows.registry.artifacts import REGISTRY

    if artifact.startswith(REGISTRY):
        use_services("s3", "mlflow")
    elif in_s3(artifact, data, classes):
        find_s3()
    measure = partial(evaluate_artifact, artifact, data, preprocess, eval_images, classes)
    print_report(measure, json_, _show_accuracy)


def _show_accuracy(report: dict[str, Any]) -> None:
    print(f"top-1 {report['top1']:.2f} % of {report['images']}")
    print(f"{report['latency_ms']:.2f} ms for one image, {report['bytes']:,} bytes")
