"""``modcap scan`` and ``modcap promote``: checkpoints in, versions out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from modcap.core.errors import InputError
from modcap.core.messages import parse
from modcap.flows.cli.fields import Options, taking
from modcap.flows.cli.options import INPUT, Json, print_report
from modcap.flows.cli.services import connect_services
from modcap.flows.cli.tables import Column, print_table, print_warnings
from modcap.flows.execution import terminal
from modcap.flows.requests.gate import Gate
from modcap.ptq.measured import Scale

__all__ = ["promote", "scan"]

_GATE = Options(
    Gate,
    "Gate",
    panels={
        INPUT: ("data", "eval_images", "metric", "device"),
        "Version and alias": ("alias", "version"),
    },
    without=("name",),
)


def scan(
    prefix: Annotated[str, typer.Argument(help="s3://bucket/prefix below which checkpoints lie.")],
    policy: Annotated[Path, typer.Option(help="YAML or JSON: rules, data and recipes.")],
    json_: Json = False,
) -> None:
    """Quantize and register every new or changed checkpoint below a prefix; exit 1 if any fails."""
    terminal.doing(f"reading {policy}")
    from modcap.flows.requests.scan_policy import read_policy
    from modcap.tasks.storage.objects import split_address

    split_address(prefix)  # refused before anything starts
    rules = read_policy(policy)
    connect_services()
    from modcap.flows.scan import scan as flow

    print_report(partial(flow, prefix, rules), json_, show_checkpoints)


def show_checkpoints(report: dict[str, Any]) -> None:
    """What became of each, and how accurate its versions are."""
    if report["busy"]:
        print("another pass over this prefix is under way: nothing to do")
        return
    prefix = report["prefix"].rstrip("/") + "/"
    print_warnings(
        f"{row['checkpoint'].removeprefix(prefix)}: {text}"
        for row in report["checkpoints"]
        if row["state"] == "registered"
        for text in row.get("warnings", ())
    )
    other = any(
        None in row.get("top1", ()) and row.get("measured") for row in report["checkpoints"]
    )
    print_table(
        f"below {prefix}",
        [Column(name, "left") for name in ("checkpoint", "state", "versions or reason")]
        + [Column("measured" if other else "top-1 %")],
        [
            (
                row["checkpoint"].removeprefix(prefix),
                row["state"],
                "\n".join(row["versions"]) or row["reason"],
                "\n".join(_figures(row, other)),
            )
            for row in report["checkpoints"]
        ],
    )
    print(f"{report['executed']} jobs executed, {report['seconds']:.1f} s")


def _figures(row: dict[str, Any], named: bool) -> list[str]:
    """Of each version; with the metric where that is not top-1 for all."""
    if named and row.get("measured"):
        return list(row["measured"])
    return ["" if top1 is None else f"{top1:.2f}" for top1 in row.get("top1", ())]


@taking(given=_GATE)
def promote(
    name: Annotated[str, typer.Argument(help="Registered model.")],
    given: dict[str, Any],
    rollback: Annotated[
        bool,
        typer.Option(
            "--rollback",
            help=r"Give the alias back to the version before. \[default: no]",
            show_default=False,
            rich_help_panel="Version and alias",
        ),
    ] = False,
    json_: Json = False,
) -> None:
    """Move an alias to a version that passes the gate; exit 3 where it is refused."""
    if "data" not in given and not rollback:
        raise InputError("--data is missing: name held-out images to measure on")
    gate = None if rollback else parse(Gate, {"name": name, **given})
    alias = given.get("alias", Gate.model_fields["alias"].default)
    connect_services("s3", "mlflow", "prefect")
    from modcap.flows import promote as gates

    decide = partial(gates.rollback, name, alias) if gate is None else partial(gates.promote, gate)
    print_report(decide, json_, show_alias)


def show_alias(report: dict[str, Any]) -> None:
    """What was asked of the version, and who has the alias now."""
    print_warnings(report.get("warnings", ()))
    if "conditions" in report:
        scale = Scale.of(report)
        figure, full = (scale.said(scale.value(report, prefix)) for prefix in ("", "fp_"))
        print(
            f"{report['name']} version {report['version']}: {scale.words} {figure} (full "
            f"precision {full}, drop {scale.text(report['drop'])}) of {report['measured']}, "
            f"{report['bytes']:,} bytes"
        )
    for row in report.get("conditions", ()):
        word = "met" if row["met"] else "NOT MET"
        print(f"  {row['condition']}: {row['measured']:,} {row['sign']} {row['limit']:,}: {word}")
    if report.get("passed", True):
        print(f"{report['name']} version {report['version']} is {report['alias']}")
