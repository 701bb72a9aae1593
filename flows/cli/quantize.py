"""``modcap quantize``."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from modcap.core.messages import parse
from modcap.flows.cli.bits import print_bits
from modcap.flows.cli.fields import taking
from modcap.flows.cli.options import (
    OUTPUT,
    Json,
    Preset,
    RecipeFile,
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
from modcap.ptq.measured import Scale

__all__ = ["quantize"]


@taking(request=request_options(), given=recipe_options())
def quantize(
    checkpoint: Annotated[
        str, typer.Argument(help="Local path or s3:// address of .pt2, .safetensors, .pt, .pth.")
    ],
    request: dict[str, Any],
    given: dict[str, Any],
    recipe: RecipeFile = None,
    preset: Preset = "quick",
    compare: Annotated[
        bool,
        typer.Option(
            help=r"Also run rounding to nearest and k = 0, for the table. \[default: yes]",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = True,
    json_: Json = False,
) -> None:
    """Quantize one checkpoint, register the result in MLflow and print a report."""
    full = make_recipe(preset, recipe, given)
    asked = parse(Request, {"checkpoint": checkpoint, **request, "recipe": full})
    terminal.doing(f"reading {checkpoint}")
    if not request_in_s3(asked):
        from modcap.flows.requests.request import prepare

        prepare(asked)  # bad input is refused before anything starts
    connect_services()
    from modcap.flows.quantize import quantize as flow

    print_report(partial(flow, asked, compare), json_, show)


def show(report: dict[str, Any]) -> None:
    """The variants side by side, and where the result lies."""
    from modcap.flows.reports.environments import in_words

    print_warnings(report["warnings"])
    scale = Scale.of(report)
    columns = [
        Column("variant", "left"),
        *(Column(name) for name in (scale.metric_title, "drop", "final error", "groups", "bytes")),
    ]
    print_table(
        f"{report['model_name']} version {report['model_version']}: {report['bits']}",
        columns,
        [_row(row, scale, report["fp_bytes"]) for row in report["comparison"]],
    )
    jobs = report["jobs"]
    if report["allocation"] or report["recipe"]["bits"] or report["recipe"]["float"]:
        print_bits("bits", report["layer_bits"], report["allocation"])
    print(f"final error: relative error of the {_outputs(report)}, on calibration images")
    print(f"jobs: {jobs['planned']} planned, {jobs['executed']} executed, {jobs['reused']} reused")
    print(f"{report['seconds']:.1f} s; {report['measured']}")
    if len(report["environments"]) > 1:
        print(
            "computed in more than one environment, between which bytes may differ: "
            + in_words(report["environments"])
        )
    print(f"MLflow run: {report['mlflow_run_url']}")
    print(f"artifact:   {report['artifact']}")
    for row in report["exports"]:
        print(f"{row['format'] + ':':<11} {row['file']}, {row['bytes']:,} bytes")


def _outputs(report: dict[str, Any]) -> str:
    return "outputs" if report.get("outputs") else "logits"


def _row(row: dict[str, Any], scale: Scale, fp_bytes: int) -> tuple[str, ...]:
    figure = scale.text(scale.value(row))
    if "drop" not in row:
        return row["variant"], figure, "", "", "", f"{fp_bytes:,}"
    return (
        row["variant"],
        figure,
        scale.text(row["drop"]),
        f"{row['final_error']:.3g}",
        str(row["groups"]),
        f"{row['artifact_bytes']:,}",
    )
