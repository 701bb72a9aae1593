"""Progress a person can follow: a live view on a terminal, plain lines elsewhere; on stderr."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from modcap.core.errors import printable
from modcap.flows.execution import terminal
from modcap.flows.execution.followers import Follower, Standing
from modcap.flows.execution.time_left import TimeLeft
from modcap.jobs.job import Job
from modcap.jobs.plan import Plan

__all__ = ["Progress"]

_ESTIMATE_SECONDS = 1  # between two estimates, which simulate all that is left
_PLAIN_SECONDS = 15  # between two plain lines about jobs that run


class Progress:
    """Shows groups, losses and the time left. Use it as a context manager.

    With a terminal on stderr a live view is drawn; without one, a line is printed for every
    finished group and now and then for what runs.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or terminal.console()
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            console=self.console,
        )
        self._bar = self._bars.add_task("jobs", total=None)
        self._live: Live | None = None
        self._total = self._done = 0
        self._left = TimeLeft()
        self._asked = -math.inf
        self._seconds: float | None = None
        self._said = 0.0
        self._errors: list[float] = []
        self._followers: list[Follower] = []
        self._log: Callable[[str], None] = lambda line: None

    def __enter__(self) -> Progress:
        terminal.done()
        if self.console.is_terminal:
            self._live = Live(
                self._bars, console=self.console, refresh_per_second=4, transient=True
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    @contextlib.contextmanager
    def followed_by(self, tell: Callable[[Standing], None]) -> Iterator[None]:
        """Calls ``tell`` in a thread, now and then and at the end, with how far the run is."""
        follower = Follower(tell)
        self._followers.append(follower)
        try:
            yield
        finally:
            self._followers.remove(follower)
            follower.close(self._standing({}))

    @contextlib.contextmanager
    def logged_by(self, log: Callable[[str], None]) -> Iterator[None]:
        """Gives every line that stays to ``log``, too."""
        before, self._log = self._log, log
        try:
            yield
        finally:
            self._log = before

    def _standing(self, losses: Mapping[str, float]) -> Standing:
        left = 0.0 if 0 < self._total == self._done else self._seconds
        return Standing(self._done, self._total, left, losses, tuple(self._errors))

    def note(self, text: str) -> None:
        """One line that stays; names in it may be anybody's."""
        self._log(printable(text))
        self.console.print(printable(text), soft_wrap=True, markup=False)

    def planned(self, plan: Plan, done: Iterable[str]) -> None:
        """A round of planning found these jobs, of which some are done."""
        done = set(done)
        self._total, self._done = len(plan.jobs), sum(job.key in done for job in plan.jobs)
        self._left.planned(plan, done)
        self._bars.update(self._bar, total=self._total, completed=self._done)
        if self._done < self._total:
            self.note(f"{self._total} jobs planned, {self._done} done already")

    def finished(self, job: Job, meta: Mapping[str, Any]) -> None:
        """``job`` is done, with this result."""
        self._done += 1
        self._left.finished(job, meta.get("seconds", 0.0))
        self._bars.update(self._bar, completed=self._done)
        if meta.get("attempt"):
            self.note(f"{job.label}: its worker was lost, started again {meta['attempt']} time(s)")
        if job.work.steps and "error" in meta:
            self._errors.append(meta["error"])
            self.note(
                f"[{self._done}/{self._total}] {job.label}: error {meta['error']:.3g}, "
                f"{meta['seconds']:.1f} s{self._said_left({})}"
            )

    def running(self, jobs: Iterable[Job], state: Mapping[str, tuple[int, int, float]]) -> None:
        """These jobs run; ``state`` maps keys to (step, steps, loss)."""
        lines = [(job.label, *state[job.key]) for job in jobs if job.key in state]
        for follower in self._followers:
            follower.at(self._standing({label: loss for label, _, _, loss in lines}))
        if self._live:
            table = Table.grid(padding=(0, 2))
            for label, step, steps, loss in lines:
                table.add_row(
                    Text(f"  {printable(label)}"), f"step {step}/{steps}", f"loss {loss:.4g}"
                )
            self._live.update(Group(self._bars, table, f"  {self._said_left(state)[2:]}"))
        elif lines and time.monotonic() - self._said > _PLAIN_SECONDS:
            self._said = time.monotonic()
            for label, step, steps, loss in lines:
                self.note(
                    f"  {label}: step {step}/{steps}, loss {loss:.4g}{self._said_left(state)}"
                )

    def _said_left(self, state: Mapping[str, tuple[int, int, float]]) -> str:
        """', about 3 min left', where that is known."""
        if time.monotonic() - self._asked > _ESTIMATE_SECONDS:
            self._asked = time.monotonic()
            shares = {key: at / max(1, of) for key, (at, of, _) in state.items()}
            self._seconds = self._left.seconds(shares)
        seconds = self._seconds
        if seconds is None:
            return ""
        return (
            f", about {seconds / 60:.1f} min left"
            if seconds > 90
            else f", about {seconds:.0f} s left"
        )
