"""``modcap scan`` and ``modcap promote``: checkpoints in, versions out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from modcap.core.errors import InputError
from modcap.flows.cli.options import Json, print_report

__all__ = ["promote", "scan"]


def scan(
    prefix: Annotated[str, typer.Argument(help="s3://bucket/prefix below which checkpoints lie.")],
    policy: Annotated[Path, typer.Option(help="YAML or JSON: rules, data and recipes.")],
    json_: Json = False,
) -> None:
    """Quantize and register every new or changed checkpoint below a prefix; exit 1 if any fails."""
    from modcap.flows.execution.connect import use_services
    from modcap.flows.requests.scan_policy import read_policy
    from modcap.tasks.storage.objects import split_address

    split_address(prefix)  # refused before anything starts
    rules = read_policy(policy)
    use_services()
    from modcap.flows.scan import scan as flow

    print_report(partial(flow, prefix, rules), json_, _show_checkpoints)


def _show_checkpoints(report: dict[str, Any]) -> None:
    if report["busy"]:
        print("another pass over this prefix is under way: nothing to do")
        return
    table = Table(title_justify="left")
    for heading in ("checkpoint", "state", "versions or reason"):
        table.add_column(heading, overflow="fold")
    for row in report["checkpoints"]:
        table.add_row(row["checkpoint"], row["state"], ", ".join(row["versions"]) or row["reason"])
    Console().print(table)
    print(f"{report['executed']} jobs executed, {report['seconds']:.1f} s")


def promote(
    name: Annotated[str, typer.Argument(help="Registered model.")],
    data: Annotated[str | None, typer.Option(help="Held-out images.")] = None,
    alias: Annotated[str, typer.Option(help="Alias that the version gets.")] = "champion",
    version: Annotated[int | None, typer.Option(help="By default, alias 'candidate'.")] = None,
    max_drop: Annotated[float | None, typer.Option(help="Points of top-1 it may lose.")] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Bytes that it may take.")] = None,
    against: Annotated[str | None, typer.Option(help="Alias that it must not be below.")] = None,
    eval_images: Annotated[int | None, typer.Option(help="Test images; all by default.")] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Give the alias back to the version before.")
    ] = False,
    json_: Json = False,
) -> None:
    """Move an alias to a version that passes the gate; exit 3 where it is refused."""
    from modcap.core.messages import parse
    from modcap.flows.execution.connect import use_services
    from modcap.flows.requests.gate import Gate

    if data is None and not rollback:
        raise InputError("--data is missing: name held-out images to measure on")
    conditions = {
        "name": name,
        "alias": alias,
        "version": version,
        "data": data or "",
        "eval_images": eval_images,
        "max_drop": max_drop,
        "max_bytes": max_bytes,
        "against": against,
    }
    gate = parse(Gate, conditions)
    use_services("s3", "mlflow", "prefect")
    from modcap.flows import promote as gates

    decide = partial(gates.rollback, name, alias) if rollback else partial(gates.promote, gate)
    print_report(decide, json_, _show_alias)


def _show_alias(report: dict[str, Any]) -> None:
    if report.get("passed", True):
        print(f"{report['name']} version {report['version']} is {report['alias']}")
