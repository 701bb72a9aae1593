"""The command line. Exit codes: 0 done, 1 failed, 2 the input is wrong, 3 a gate refused."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Annotated, Any

import typer

from modcap.core.errors import ModcapError, Notice, printable
from modcap.core.messages import first_line, without_password
from modcap.flows.cli.commands import add, group
from modcap.flows.cli.doctor import doctor
from modcap.flows.cli.export import export
from modcap.flows.cli.measure import capacity, evaluate
from modcap.flows.cli.plan import plan
from modcap.flows.cli.quantize import quantize
from modcap.flows.cli.registry import promote, scan
from modcap.flows.cli.report import report
from modcap.flows.cli.stack import stack
from modcap.flows.cli.store import store
from modcap.flows.cli.sweep import sweep
from modcap.flows.execution import terminal
from modcap.flows.execution.ending import AGAIN, end, gone

__all__ = ["app", "main"]

_SERVICES = {"botocore": "S3", "httpx": "Prefect", "mlflow": "MLflow", "ray": "Ray"}
"""By the package whose errors tell of them."""
_UsageError: Any = typer.BadParameter.__base__  # typer may carry a click of its own

app = group("modcap", "Post-training quantization of vision networks by module capacity.")
add(app, quantize, "modcap quantize net.pt2 --data images/ --w-bits 3")
add(app, capacity, "modcap capacity net.pt2 --k 2")
add(app, plan, "modcap plan net.pt2 --w-bits 2,3,4 --k 0-3,auto --workers 64")
add(app, sweep, "modcap sweep net.pt2 --data images/ --w-bits 2-4 --k 0-3,auto")
add(app, evaluate, "modcap evaluate models:/net@champion --data heldout.npz")
add(app, export, "modcap export models:/net@champion --format onnx --out net.onnx")
add(app, report, "modcap report models:/net@champion --output net.html")
add(app, scan, "modcap scan s3://bucket/incoming --policy policy.yaml")
add(app, promote, "modcap promote net --data heldout.npz --max-drop 1.0")
add(app, doctor, "modcap doctor")
app.add_typer(store, name="store")
app.add_typer(stack, name="stack")


def _say_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"modcap {version('modcap')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_say_version),
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits with its code; errors are one line on stderr."""
    with _as_a_command():
        sys.exit(_code(arguments))


def _code(arguments: list[str] | None) -> int:
    try:
        return int(app(args=arguments, prog_name="modcap", standalone_mode=False) or 0)
    except _UsageError as error:
        return _fail(error.format_message(), 2)
    except ModcapError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(f"interrupted: {AGAIN}", 130)
    except _Terminated:
        return _fail(f"terminated: {AGAIN}", 143)
    except Exception as error:
        said = _of_a_service(error)
        if said is None:
            raise
        return _fail(said, 1)


@contextlib.contextmanager
def _as_a_command() -> Iterator[None]:
    """SIGTERM ends the command with a line, and warnings are lines; both only meanwhile."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_CLIENT_RETRY_EXTRA_CODES", "500")  # its database restarts
    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if here else None
    shown = warnings.showwarning
    warnings.showwarning = _say_notices(shown)
    try:
        yield
    finally:
        warnings.showwarning = shown
        if here:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _of_a_service(error: Exception) -> str | None:
    """What is said of a service that failed; None where ``error`` comes from elsewhere."""
    if _prefect_is_gone():
        return f"Prefect at {os.environ['PREFECT_API_URL']} is gone: {AGAIN}"
    packages = [each.__module__.partition(".")[0] for each in type(error).__mro__]
    service = next((_SERVICES[name] for name in packages if name in _SERVICES), None)
    return service and f"{service}: {type(error).__name__}: {first_line(error)}: {AGAIN}"


def _say_notices(others: Callable[..., None]) -> Callable[..., None]:
    """Prints what modcap warns of as one line; what ``others`` warn of, only where asked for."""

    def show(message: Any, category: type[Warning], *rest: Any) -> None:
        if issubclass(category, Notice):
            print(f"modcap: {message}", file=sys.stderr)
        elif terminal.verbose():
            others(message, category, *rest)

    return show


class _Terminated(BaseException):
    """SIGTERM came."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _prefect_is_gone() -> bool:
    return "PREFECT_API_URL" in os.environ and gone(os.environ["PREFECT_API_URL"])


def _fail(message: str, code: int) -> int:
    line = printable(without_password(" ".join(message.split())))
    if _prefect_is_gone():  # Prefect would try for minutes to reach it at exit
        end(line, code)
    print(f"modcap: {line}", file=sys.stderr)
    return code
