"""``modcap stack``: the local services."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from modcap.core.errors import InputError
from modcap.flows.cli.options import Json, print_report

__all__ = ["stack"]

stack = typer.Typer(help="The local stack: S3, MLflow, Prefect and Ray on loopback.")


@stack.command("up")
def up(json_: Json = False) -> None:
    """Start what is missing and wait until all of it answers."""
    from modcap.infra import local

    local.up(report=lambda line: print(line, file=sys.stderr, flush=True))
    status(json_)


@stack.command("down")
def down(json_: Json = False) -> None:
    """Stop every service of the local stack; data stays."""
    from modcap.infra import local

    print_report(lambda: {"stopped": local.down()}, json_, _show_stopped)


def _show_stopped(report: dict[str, Any]) -> None:
    print(f"stopped: {', '.join(report['stopped']) or 'nothing'}")


@stack.command("status")
def status(json_: Json = False) -> None:
    """Show each service, its address and its state."""
    from modcap.infra import local

    services = [service.as_dict() for service in local.status()]
    report = {"services": services, "logins": str(local.logins())}
    print_report(lambda: report, json_, _show_services)


def _show_services(report: dict[str, Any]) -> None:
    table = Table()
    for heading in ("service", "state", "address", "pid"):
        table.add_column(heading)
    for service in report["services"]:
        table.add_row(*(str(service[key] or "") for key in ("name", "state", "address", "pid")))
    Console().print(table)
    print(
        f"The pages ask for a login; {report['logins']} holds it. MLflow: user modcap, password "
        "mlflow_password. Prefect: modcap:prefect_password, in one."
    )


@stack.command("run", context_settings={"ignore_unknown_options": True})
def run(
    command: Annotated[list[str], typer.Argument(help="A command and its arguments, after --.")],
) -> None:
    """Run a command with the stack's addresses and credentials in its environment."""
    from modcap.infra import local

    running = local.up(report=lambda line: print(line, file=sys.stderr, flush=True))
    os.environ.update(running.environment())
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise InputError(f"{command[0]} cannot be run ({error.strerror})") from None
