"""Puts commands into the application: with an example, and with what all of them have."""

from __future__ import annotations

import functools
import inspect
from typing import Annotated, Any

import typer

from modcap.flows.cli.fields import Command, as_typed
from modcap.flows.execution import terminal

__all__ = ["add", "group"]

PANELS = (
    "Checkpoint and images",
    "Grid",
    "Bits and method",
    "Capacity and joining",
    "Steps and schedule",
    "Result",
    "Optimiser",
    "Recipe, in detail",
)
_PANEL = "Every command"
_QUIET = inspect.Parameter(
    "quiet",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            help=r"Say nothing but the result, warnings and errors. \[default: no]",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ],
)
_VERBOSE = inspect.Parameter(
    "verbose",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help=r"Also show what the libraries below say. \[default: no]",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ],
)


def group(name: str, help_: str, **settings: Any) -> typer.Typer:
    """An application, or a group of commands in one."""
    return typer.Typer(
        name=name,
        help=help_,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


def add(app: typer.Typer, command: Command, example: str, **settings: Any) -> None:
    """Adds ``command``, whose help ends with ``example``."""
    signature = inspect.signature(command, eval_str=True)
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()]

    @functools.wraps(command)
    def run(quiet: bool, verbose: bool, **typed: Any) -> None:
        live = not typed.get("json_", False)
        with terminal.asked(quiet=quiet, verbose=verbose, live=live):
            command(**typed)

    epilog = f"Example: {example}".replace("[", r"\[")
    ordered = sorted(own, key=_place)
    app.command(epilog=epilog, **settings)(as_typed(run, [*ordered, _QUIET, _VERBOSE]))


def _place(parameter: inspect.Parameter) -> int:
    """Panels of the help come in the order in which they are of use; arguments are first."""
    said = getattr(parameter.annotation, "__metadata__", (None,))[0]
    panel = getattr(said, "rich_help_panel", None)
    if isinstance(said, typer.models.ArgumentInfo):
        return -1
    return PANELS.index(panel) if panel in PANELS else len(PANELS)
