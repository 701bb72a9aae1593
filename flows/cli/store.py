"""``modcap store``: what lies in S3."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from modcap.flows.cli.options import Json, parse_age, print_report

__all__ = ["store"]

store = typer.Typer(help="Results, inputs and artifacts in S3.")


@store.command()
def gc(
    older_than: Annotated[str, typer.Option(help="Such as 30d or 12h; younger objects stay.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only report.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even if nothing of it was ever registered.")
    ] = False,
    json_: Json = False,
) -> None:
    """Remove results, inputs and artifacts that no registered version was made from."""
    from modcap.flows.execution.connect import use_services

    age = parse_age(older_than)
    use_services("s3", "mlflow")
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


@store.command()
def verify(json_: Json = False) -> None:
    """Read everything and compare it with its checksums; exit 1 where something is damaged."""
    from modcap.flows.execution.connect import use_services

    use_services("s3")
    from modcap.flows.registry.retention import verify as check
    from modcap.tasks.storage.store import Store

    report = print_report(partial(check, Store.from_environment()), json_, _show_damage)
    if report["damaged"]:
        raise typer.Exit(1)


def _show_damage(report: dict[str, Any]) -> None:
    for entry in report["damaged"]:
        print(f"{entry['object']}: {entry['reason']}")
    print(f"{report['checked']} objects checked, {len(report['damaged'])} damaged")
