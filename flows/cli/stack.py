"""``modcap stack``: the local services."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from modcap.core.errors import InputError
from modcap.flows.cli.commands import add, group
from modcap.flows.cli.options import Json, print_report
from modcap.flows.cli.tables import Column, print_table

__all__ = ["stack"]

stack = group("stack", "The local stack: S3, MLflow, Prefect and Ray on loopback.")


def up(json_: Json = False) -> None:
    """Start what is missing and wait until all of it answers."""
    from modcap.infra import local

    local.up(report=lambda line: print(line, file=sys.stderr, flush=True))
    status(json_)


def down(json_: Json = False) -> None:
    """Stop every service of the local stack; data stays."""
    from modcap.infra import local

    print_report(lambda: {"stopped": local.down()}, json_, _show_stopped)


def _show_stopped(report: dict[str, Any]) -> None:
    print(f"stopped: {', '.join(report['stopped']) or 'nothing'}")


def status(json_: Json = False) -> None:
    """Show each service, its address and its state."""
    from modcap.infra import local

    services = [service.as_dict() for service in local.status()]
    report = {"services": services, "logins": str(local.logins())}
    print_report(lambda: report, json_, _show_services)


def _show_services(report: dict[str, Any]) -> None:
    print_table(
        None,
        [Column(heading, "left") for heading in ("service", "state", "address", "pid")],
        [
            [str(service[key] or "") for key in ("name", "state", "address", "pid")]
            for service in report["services"]
        ],
    )
    print(f"The pages ask for a login; {report['logins']} holds it.")
    print("MLflow: user modcap, password mlflow_password.")
    print("Prefect: modcap:prefect_password, in one.")


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


add(stack, up, "modcap stack up", name="up")
add(stack, down, "modcap stack down", name="down")
add(stack, status, "modcap stack status --json", name="status")
add(
    stack,
    run,
    "modcap stack run -- python serve.py",
    name="run",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
