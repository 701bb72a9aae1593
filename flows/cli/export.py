"""``modcap export``: an artifact in the formats that devices and runtimes read."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from modcap.flows.cli.options import OUTPUT, Json, in_s3, print_report
from modcap.flows.cli.services import connect_services, find_store
from modcap.flows.execution import terminal

__all__ = ["export"]


def export(
    artifact: Annotated[
        str, typer.Argument(help="Local path, s3:// address or models:/NAME@alias of an artifact.")
    ],
    out: Annotated[Path, typer.Option(help="The file that is written.", rich_help_panel=OUTPUT)],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help=r"onnx, pt2, encodings or safetensors. \[default: onnx]",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = "onnx",
    opset: Annotated[
        int,
        typer.Option(
            help="Of ONNX: 25, or 21 without 2-bit types, or 13 without 4-bit ones. "
            r"\[default: 25]",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = 25,
    json_: Json = False,
) -> None:
    """Write an artifact in another format, compared with it before it is written."""
    terminal.doing(f"reading {artifact}")
    if artifact.startswith("models:/"):
        connect_services("s3", "mlflow")
    elif in_s3(artifact):
        find_store()
    from modcap.flows.registry.exports import export_artifact

    terminal.doing(f"writing {out}")
    print_report(partial(export_artifact, artifact, format_, out, opset), json_, _show)


def _show(report: dict[str, Any]) -> None:
    print(f"{report['file']}: {report['format']}, {report['bytes']:,} bytes")
    if "agreement" in report:
        print(
            f"agrees with the artifact on {report['agreement']:.0f} % of "
            f"{report['compared_images']} images, logits within {report['largest_difference']:.2g}"
        )
    for name, each in report.get("outputs", {}).items():
        print(f"{name}: within {each['largest_difference']:.2g} of {each['largest_logit']:.2g}")
    if "note" in report:
        print(report["note"])
