"""The command line. Exit codes: 0 done, 1 failed, 2 the input is wrong, 3 a gate refused."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import typer

from modcap.core.errors import ModcapError, Notice
from modcap.flows.cli.export import export
from modcap.flows.cli.measure import capacity, evaluate
from modcap.flows.cli.quantize import quantize
from modcap.flows.cli.registry import promote, scan
from modcap.flows.cli.stack import stack
from modcap.flows.cli.store import store
from modcap.flows.cli.sweep import plan, sweep
from modcap.flows.execution.ending import AGAIN, end, gone

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
    warnings.showwarning = _say_notices(warnings.showwarning)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = app(args=arguments, standalone_mode=False)
    except _UsageError as error:
        code = _fail(error.format_message(), 2)
    except ModcapError as error:
        code = _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail(f"interrupted: {AGAIN}", 130)
    except _Terminated:
        code = _fail(f"terminated: {AGAIN}", 143)
    except Exception:
        if not _prefect_is_gone():
            raise
        code = _fail(f"Prefect at {os.environ['PREFECT_API_URL']} is gone: {AGAIN}", 1)
    sys.exit(code or 0)


def _say_notices(others: Callable[..., None]) -> Callable[..., None]:
    """Prints what modcap warns of as one line, and leaves warnings of ``others`` to them."""

    def show(message: Any, category: type[Warning], *rest: Any) -> None:
        if issubclass(category, Notice):
            print(f"modcap: {message}", file=sys.stderr)
        else:
            others(message, category, *rest)

    return show


class _Terminated(BaseException):
    """SIGTERM came."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _prefect_is_gone() -> bool:
    return "PREFECT_API_URL" in os.environ and gone(os.environ["PREFECT_API_URL"])


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    if _prefect_is_gone():  # Prefect would try for minutes to reach it at exit
        end(line, code)
    print(f"modcap: {line}", file=sys.stderr)
    return code
