"""A bar on the terminal while a model is quantized; nothing where stderr is none."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from modcap.jobs.job import Job

__all__ = ["ProgressBar"]


class ProgressBar:
    """Told of jobs as they are planned, run and end. Use it as a context manager.

    It is drawn by ``rich``, where that is installed, on a terminal or in a notebook.
    """

    def __init__(self, wanted: bool = True) -> None:
        self._bar = _bar() if wanted else None
        self._task: Any = None

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._task = self._bar.add_task("quantizing", total=None)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def planned(self, jobs: int, done: int) -> None:
        """So many jobs are known, of which some are done."""
        self._update(total=jobs, completed=done)

    def begins(self, job: Job) -> None:
        """``job`` does."""
        self._update(description=job.label)

    def ended(self) -> None:
        """The job did that began last."""
        self._update(advance=1)

    def step(self, job: Job, step: int, steps: int, loss: float) -> None:
        """``job`` optimises."""
        self._update(description=f"{job.label}: step {step}/{steps}, loss {loss:.3g}")

    def _update(self, **what: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, **what)


def _bar() -> Any:
    """None where there is nobody to see it."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed
    except ImportError:  # no part of the library alone
        return None
    console = Console(file=sys.stderr)
    if not (console.is_terminal or console.is_jupyter):
        return None
    what = TextColumn("{task.description}", markup=False)
    return Progress(
        BarColumn(), MofNCompleteColumn(), Elapsed(), what, console=console, transient=True
    )
