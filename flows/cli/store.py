"""``modcap store``: what lies in S3."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from modcap.flows.cli.commands import add, group
from modcap.flows.cli.options import Json, parse_age, print_report
from modcap.flows.cli.services import connect_services

__all__ = ["store"]

store = group("store", "Results, inputs and artifacts in S3.")


def gc(
    older_than: Annotated[str, typer.Option(help="Such as 30d or 12h; younger objects stay.")],
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help=r"Only report. \[default: no]", show_default=False),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help=r"Even if nothing of it was ever registered. \[default: no]",
            show_default=False,
        ),
    ] = False,
    json_: Json = False,
) -> None:
    """Remove results, inputs and artifacts that no registered version was made from."""
    age = parse_age(older_than)
    connect_services("s3", "mlflow")
    from modcap.flows.registry.retention import collect_garbage
    from modcap.tasks.storage.store import Store

    collect = partial(collect_garbage, Store.from_environment(), age, dry_run=dry_run, force=force)
    print_report(collect, json_, partial(_show_collected, dry_run))


def _show_collected(dry_run: bool, report: dict[str, Any]) -> None:
    for name in ("kept", "removed"):
        found = report[name]
        word = "would go" if name == "removed" and dry_run else name
        print(
            f"{word}: {found['jobs']} results, {found['inputs']} inputs, "
            f"{found['artifacts']} artifacts, {found['bytes'] / 1e6:.1f} MB"
        )


def verify(json_: Json = False) -> None:
    """Read everything and compare it with its checksums; exit 1 where something is damaged."""
    connect_services("s3")
    from modcap.flows.registry.retention import verify as check
    from modcap.tasks.storage.store import Store

    report = print_report(partial(check, Store.from_environment()), json_, _show_damage)
    if report["damaged"]:
        raise typer.Exit(1)


def _show_damage(report: dict[str, Any]) -> None:
    for entry in report["damaged"]:
        print(f"{entry['object']}: {entry['reason']}")
    print(f"{report['checked']} objects checked, {len(report['damaged'])} damaged")


add(store, gc, "modcap store gc --older-than 30d --dry-run", name="gc")
add(store, verify, "modcap store verify", name="verify")
