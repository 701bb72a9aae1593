"""``modcap capacity`` and ``modcap evaluate``: they start no server."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated, Any

import typer

from modcap.core.messages import parse
from modcap.flows.cli.fields import taking
from modcap.flows.cli.options import (
    INPUT,
    Json,
    Preset,
    RecipeFile,
    in_s3,
    make_recipe,
    print_report,
    recipe_options,
    request_in_s3,
    request_options,
)
from modcap.flows.cli.services import connect_services, find_store
from modcap.flows.cli.tables import Column, print_table
from modcap.flows.execution import terminal
from modcap.flows.requests.asked import Request
from modcap.ptq.measured import TOP1, Scale
from modcap.ptq.metric_name import MetricName
from modcap.recipe import Device

__all__ = ["capacity", "evaluate"]


@taking(
    request=request_options(
        without=("eval_data", "eval_images", "metric", "name", "force", "onnx", "exports")
    ),
    given=recipe_options(),
)
def capacity(
    checkpoint: Annotated[
        str, typer.Argument(help="Local path or s3:// address of .pt2, .safetensors, .pt, .pth.")
    ],
    request: dict[str, Any],
    given: dict[str, Any],
    recipe: RecipeFile = None,
    preset: Preset = "quick",
    json_: Json = False,
) -> None:
    """Show the capacity of every module and the boundaries it selects; starts no server."""
    full = make_recipe(preset, recipe, given)
    asked = parse(Request, {"checkpoint": checkpoint, **request, "recipe": full})
    terminal.doing(f"reading {checkpoint}")
    if request_in_s3(asked):
        find_store()
    from modcap.flows.reports.capacities import measure_capacity

    print_report(partial(measure_capacity, asked), json_, show_capacities)


def show_capacities(report: dict[str, Any]) -> None:
    """Modules in order; the differential is the one to the next."""
    marks = [
        "joined" if chosen else "" if homogeneous else "not homogeneous"
        for chosen, homogeneous in zip(report["selected"], report["homogeneous"], strict=True)
    ]
    rows = zip(
        report["modules"],
        [f"{value:.4g}" for value in report["capacities"]],
        [*(f"{value:.4g}" for value in report["differentials"]), ""],
        [*marks, ""],
        strict=True,
    )
    columns = [
        Column("module", "left"),
        Column("capacity"),
        Column("differential to the next"),
        Column("boundary", "left"),
    ]
    print_table(f"k = {report['k']}", columns, rows)


def evaluate(
    artifact: Annotated[
        str,
        typer.Argument(help="Artifact, ONNX file or pt2 archive: a path, s3:// or models:/NAME@x."),
    ],
    data: Annotated[
        str,
        typer.Option(help="Images to measure on; all of them are.", rich_help_panel=INPUT),
    ],
    preprocess: Annotated[
        str | None,
        typer.Option(
            help="Such as 'mean=0.286,std=0.353', or a file. "
            r"\[default: what the artifact says]",
            show_default=False,
            rich_help_panel=INPUT,
        ),
    ] = None,
    eval_images: Annotated[
        int | None,
        typer.Option(
            help=r"The first N images only. \[default: all]",
            metavar="N",
            show_default=False,
            rich_help_panel=INPUT,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Class names in order: a file (a line each, or JSON), or a folder of classes. "
            r"\[default: those of the artifact, or the folders of the data]",
            show_default=False,
            rich_help_panel=INPUT,
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="Full precision, to say how often both agree. "
            r"\[default: that of a registered version]",
            show_default=False,
            rich_help_panel=INPUT,
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            help="torchvision:NAME, timm:NAME or package.module:factory, of --checkpoint; not for "
            r".pt2. \[default: none]",
            show_default=False,
            rich_help_panel=INPUT,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="What is measured: top1, agreement, error, or package.module:function. "
            r"\[default: top1 with labels, else agreement with full precision, of maps the "
            r"relative error]",
            show_default=False,
            rich_help_panel=INPUT,
        ),
    ] = None,
    device: Annotated[
        Device,
        typer.Option(
            help="That measures an artifact; auto takes a GPU where torch finds one. ONNX files "
            r"and pt2 archives stay on the CPU. \[default: auto]",
            show_default=False,
            rich_help_panel=INPUT,
        ),
    ] = Device.AUTO,
    json_: Json = False,
) -> None:
    """Measure top-1, agreement with full precision, latency and bytes of an artifact or export."""
    parse(MetricName, {"name": metric or ""}, "--metric")
    terminal.doing(f"reading {artifact}")
    if artifact.startswith("models:/"):
        connect_services("s3", "mlflow")
    elif in_s3(artifact, data, classes, checkpoint):
        find_store()
    from modcap.flows.registry.accuracy import evaluate_artifact

    terminal.doing(f"measuring {artifact}")
    how = (preprocess, eval_images, classes, checkpoint, arch, metric, device)
    print_report(partial(evaluate_artifact, artifact, data, *how), json_, show_accuracy)


def show_accuracy(report: dict[str, Any]) -> None:
    """Accuracy, speed and size."""
    scale = Scale.of(report)
    print(f"{scale.words} {scale.said(scale.value(report))} of {report['measured']}")
    if scale.metric == TOP1 and "agreement" in report:
        print(
            f"agrees with full precision ({report['fp_top1']:.2f} %) on {report['agreement']:.2f} %"
        )
    elif ":" in scale.metric:
        print(f"full precision: {scale.said(scale.value(report, 'fp_'))}")
    print(f"{report['latency_ms']:.2f} ms for one image, {report['bytes']:,} bytes")
    for warning in report["warnings"]:
        print(f"modcap: {warning}", file=sys.stderr)
