"""What commands share: their options, and the recipe that flags and files make."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from modcap.core.errors import InputError, ModcapError
from modcap.data.sources import HELP as IMAGES
from modcap.flows.requests.documents import read_mapping
from modcap.recipe import Recipe

__all__ = ["in_s3", "make_recipe", "parse_age", "parse_k", "print_report"]

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Checkpoint = Annotated[str, typer.Argument(help="Local path or s3:// address of a checkpoint.")]
Arch = Annotated[
    str | None, typer.Option(help="torchvision:NAME, timm:NAME or package.module:factory.")
]
Data = Annotated[str, typer.Option(help=f"Images: {IMAGES}.")]
Classes = Annotated[
    str | None,
    typer.Option(
        help="Class names in order: a file (a line each, or JSON), or a folder of classes."
    ),
]
Preprocess = Annotated[str | None, typer.Option(help="Such as 'mean=0.286,std=0.353'.")]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", help="YAML or JSON with recipe fields; flags win.")
]
Iterations = Annotated[int | None, typer.Option(help="Steps per group.")]
Tuning = Annotated[int | None, typer.Option(help="Steps through the whole network at the end.")]
Calibration = Annotated[int | None, typer.Option(help="Calibration images.")]
Preset = Annotated[str, typer.Option(help="quick or paper: what flags and files do not name.")]


def parse_k(text: str | None) -> dict[str, Any]:
    """``--k``: a number, or ``auto``."""
    if text is None:
        return {}
    if text == "auto":
        return {"k": None}
    if not text.isdecimal():
        raise InputError(f"--k {text!r}: give a number of boundaries, or 'auto'")
    return {"k": int(text)}


def make_recipe(
    preset: str, path: Path | None, *, iterations: int | None = None, **flags: Any
) -> Recipe:
    """The preset, overlaid by the file, overlaid by the flags that were given."""
    given = {name: value for name, value in flags.items() if value is not None}
    if iterations is not None:
        given["optimiser"] = {"iterations": iterations}
    base = Recipe.preset(preset)
    if path is not None:
        base = Recipe.make(read_mapping(path, f"recipe {path}"), base)
    return Recipe.make(given, base)


def in_s3(*places: object) -> bool:
    """Whether one of ``places`` is an S3 address."""
    return any(str(place).startswith("s3://") for place in places)


def parse_age(text: str) -> timedelta:
    """``30d``, ``12h``, ``45m``.

    Raises:
        InputError: it is something else.
    """
    match = re.fullmatch(r"(\d+)([smhdw])", text.strip())
    if match is None:
        raise InputError(f"--older-than {text!r}: give a number and a unit, such as 30d or 12h")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def print_report(
    flow: Callable[[], dict[str, Any]], json_: bool, show: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Runs a flow and prints its report, also where it ends with an error that has one.

    Stdout is for the report: what libraries print meanwhile goes to stderr.
    """
    failed: ModcapError | None = None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            report = flow()
    except ModcapError as error:
        if error.report is None:
            raise
        report, failed = error.report, error
    if json_:
        print(json.dumps(report))
    else:
        show(report)
    if failed:
        raise failed
    return report
