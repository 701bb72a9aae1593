"""What commands share: their options, and the recipe that flags and files make."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from modcap.core.errors import InputError, ModcapError
from modcap.flows.cli.fields import Options
from modcap.flows.execution import terminal
from modcap.flows.requests.asked import Request
from modcap.flows.requests.documents import read_mapping
from modcap.recipe import PRESETS, Recipe

__all__ = ["in_s3", "make_recipe", "parse_age", "print_report", "recipe_options", "request_options"]

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_BITS, _JOINING, _WORK = "Bits and method", "Capacity and joining", "Steps and schedule"
INPUT, OUTPUT, REST = "Checkpoint and images", "Result", "Recipe, in detail"

Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help=r"Print one JSON object on stdout, and nothing else there. \[default: no]",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        help=r"YAML or JSON with recipe fields; flags win. \[default: none]",
        show_default=False,
        rich_help_panel=_BITS,
    ),
]
Preset = Annotated[
    str,
    typer.Option(
        help=r"quick (minutes) or paper (about fifty times as long): what flags and files do not "
        r"name. \[default: quick]",
        metavar="quick|paper",
        show_default=False,
        rich_help_panel=_BITS,
    ),
]


def recipe_options(*, without: tuple[str, ...] = ()) -> Options:
    """The fields of a recipe, but for those that a grid has as axes."""
    return Options(
        Recipe,
        REST,
        panels={
            _BITS: (
                *("w_bits", "budget", "max_bytes", "max_drop"),
                *("a_bits", "first_last_bits", "bits", "float"),
                *("activations", "weights", "scales"),
                *("method", "calibration", "seed"),
            ),
            _JOINING: ("capacity", "k", "selection", "homogeneity"),
            _WORK: ("schedule", "iterations", "tuning", "device", "threads"),
        },
        without=without,
        presets=PRESETS,
    )


def grid_options(*, without: tuple[str, ...] = ()) -> Options:
    """The axes of a grid, and what its best cell must meet."""
    from modcap.flows.requests.sweep_grid import AXES, Sweep

    return Options(
        Sweep,
        OUTPUT,
        panels={"Grid": AXES},
        without=("requests", *without),
        flags={"seed": ("--seeds", "--seed")},
    )


def request_options(*, without: tuple[str, ...] = ()) -> Options:
    """The fields of a request, but for the checkpoint, which has no flag, and the recipe."""
    return Options(
        Request,
        INPUT,
        panels={OUTPUT: ("name", "force", "onnx", "exports")},
        without=("checkpoint", "recipe", *without),
        flags={"exports": ("--export",)},
    )


def make_recipe(preset: str, path: Path | None, given: Mapping[str, Any]) -> Recipe:
    """The preset, overlaid by the file, overlaid by the flags that were given."""
    base = Recipe.preset(preset)
    if path is not None:
        base = Recipe.make(read_mapping(path, f"recipe {path}"), base)
    return Recipe.make(given, base)


def in_s3(*places: object) -> bool:
    """Whether one of ``places`` is an S3 address."""
    return any(str(place).startswith("s3://") for place in places)


def request_in_s3(request: Request) -> bool:
    """Whether what it names has to be fetched from S3."""
    places = (request.checkpoint, request.data, request.eval_data, request.classes)
    return in_s3(*places, request.preprocess)


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
    finally:
        terminal.done()
    if json_:
        print(json.dumps(report))
    else:
        show(report)
    if failed:
        raise failed
    return report
