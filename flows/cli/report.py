"""``modcap report``: the page of a run or of a sweep, as one file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from modcap.flows.cli.options import OUTPUT, Json, print_report
from modcap.flows.cli.services import connect_services, find_store
from modcap.flows.execution import terminal

__all__ = ["report"]


def report(
    source: Annotated[
        str,
        typer.Argument(
            help="Id of an MLflow run, models:/NAME@alias, the JSON that quantize --json or sweep "
            "--json printed, or a folder with such."
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="The HTML file that is written.", rich_help_panel=OUTPUT)
    ],
    json_: Json = False,
) -> None:
    """Write the report of a run or of a sweep as one HTML file, which needs no network."""
    terminal.doing(f"reading {source}")
    from modcap.flows.registry.report_sources import is_run_id

    if source.startswith("models:/") or is_run_id(source):
        connect_services("s3", "mlflow")
    else:
        find_store()
    terminal.doing(f"writing {output}")
    print_report(partial(_write, source, output), json_, _show)


def _write(source: str, output: Path) -> dict[str, Any]:
    from modcap.core import files
    from modcap.flows.registry.report_sources import report_at
    from modcap.flows.reports.document import SweepReport
    from modcap.flows.reports.page import page_of

    found, artifact = report_at(source)
    page = page_of(found, artifact).encode()
    files.write(output, page)
    return {
        "report": source,
        "kind": "sweep" if isinstance(found, SweepReport) else "run",
        "file": str(output),
        "bytes": len(page),
        "layers": artifact is not None,
    }


def _show(report: dict[str, Any]) -> None:
    print(f"{report['file']}: {report['bytes']:,} bytes, opens in any browser")
    if report["kind"] == "run" and not report["layers"]:
        print("its layers are left out: the artifact was not at hand")
