"""``modcap doctor``: what may stand in the way of a run, and how to mend it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import typer

from modcap.flows.cli.options import Json, print_report
from modcap.flows.cli.tables import Column, print_table

__all__ = ["doctor"]


def doctor(json_: Json = False) -> None:
    """Check packages, GPU, memory, disks, services, rights on S3, the clock; exit 1 on a problem.

    Nothing is started. On S3 one small object is written and deleted.
    """
    report = print_report(_report, json_, _show)
    if report["problems"]:
        raise typer.Exit(1)


def _report() -> dict[str, Any]:
    from modcap.flows.cli.machine_checks import machine_checks
    from modcap.flows.cli.service_checks import service_checks

    findings = [*machine_checks(), *service_checks()]
    counts = Counter(finding.state for finding in findings)
    return {
        "findings": [asdict(finding) for finding in findings],
        "problems": counts["problem"],
        "warnings": counts["warning"],
    }


def _show(report: dict[str, Any]) -> None:
    print_table(
        None,
        [Column(name, "left") for name in ("check", "", "found")],
        [(each["check"], each["state"], _said(each)) for each in report["findings"]],
    )
    print(f"{report['problems']} problems, {report['warnings']} warnings")


def _said(finding: dict[str, Any]) -> str:
    if finding["state"] == "ok" or not finding["mend"]:
        return str(finding["said"])
    return f"{finding['said']}\nto mend it: {finding['mend']}"
