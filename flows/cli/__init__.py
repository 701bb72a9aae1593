"""The command line. Exit codes: 0 done, 1 failed, 2 the input is wrong, 3 a gate refused."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from flows.cli.export import export
from flows.cli.measure import capacity, evaluate
from flows.cli.quantize import quantize
from flows.cli.registry import promote, scan
from flows.cli.stack import stack
from flows.cli.store import store
from flows.cli.sweep import plan, sweep
from modcap.errors import ModcapError

__all__ = ["app", "main"]

_UsageError: Any = typer.BadParameter.__base__  # typer may carry a click of its own

app = typer.Typer(
    name="modcap",
    help="Post-training quantization of vision networks by module capacity.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (quantize, capacity, plan, sweep, evaluate, export, scan, promote):
    app.command()(command)
app.add_typer(store, name="store")
app.add_typer(stack, name="stack")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits with its code; errors are one line on stderr."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    try:
        code = app(args=arguments, standalone_mode=False)
    except _UsageError as error:
        code = _fail(error.format_message(), 2)
    except ModcapError as error:
        code = _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("interrupted: start the same command again, finished jobs are kept", 1)
    sys.exit(code or 0)


def _fail(message: str, code: int) -> int:
    print(f"modcap: {' '.join(message.split())}", file=sys.stderr)
    return code
