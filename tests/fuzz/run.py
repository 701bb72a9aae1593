"""Reads mutated files in child processes within limits: ``python -m tests.fuzz.run --help``.

Input number i of a seed is the same on every machine. A child that dies, hangs or takes too much
memory costs one input; its file is kept, and its path printed.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import math
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from modcap.core.errors import InputError
from modcap.core.serialization import DamagedResult
from tests.fuzz.kinds import KINDS

__all__ = ["Finding", "Report", "fuzz"]

MEMORY = 2 * 2**30  # bytes above what a child has at its start
CPU = 30  # seconds of the processor for one input
TIME = 300.0  # seconds by the clock, on a machine that has much else to do
_LISTED = 20


@dataclass(frozen=True)
class Finding:
    """An input that ended otherwise than in success or one line."""

    kind: str
    index: int
    reason: str
    file: str


@dataclass
class Report:
    """What came of all inputs."""

    inputs: int
    read: int
    refused: int
    seconds: float
    findings: list[Finding]


@dataclass(frozen=True)
class _Source:
    """Inputs by number."""

    seed: int
    kinds: tuple[str, ...]
    good: dict[str, bytes]

    def input(self, index: int) -> tuple[str, bytes]:
        rng = random.Random(f"{self.seed} {index}")
        name = rng.choices(self.kinds, [KINDS[kind].share for kind in self.kinds])[0]
        return name, KINDS[name].change(self.good[name], rng)


def _outcome(name: str, path: Path) -> str:
    """Nothing where it was read, ``refused`` where it was, in one line, else what was wrong."""
    try:
        KINDS[name].read(path)
    except (InputError, DamagedResult) as error:
        line = str(error)
        short = len(line) < 1000 and (isinstance(error, DamagedResult) or line.isprintable())
        return "refused" if short else f"no line: {line[:200]!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:200]
    return ""


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _limit_cpu() -> None:
    """From now on; the kernel ends the process by SIGXCPU."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(used.ru_utime + used.ru_stime) + CPU
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _child(source: _Source, indices: Sequence[int], results: Connection) -> None:
    """Says before and after each input where it is."""
    warnings.simplefilter("ignore")
    faulthandler.disable()  # the parent says how a child died
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "class")
        place.mkdir()
        for index in indices:
            name, content = source.input(index)
            path = place / name
            path.write_bytes(content)
            results.send((index, None))
            _limit_cpu()
            results.send((index, _outcome(name, path)))
            path.unlink()


class _Worker:
    """A child and what is left for it to read."""

    def __init__(self, source: _Source, indices: range) -> None:
        self.source, self.left = source, indices
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("fork")
        self.results, theirs = context.Pipe(duplex=False)
        given = (self.source, self.left, theirs)
        self.process = context.Process(target=_child, args=given, daemon=True)
        self.process.start()
        theirs.close()
        self.current: int | None = None
        self.since = time.monotonic()

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.results.close()

    def lost(self, reason: str) -> tuple[int, str]:
        """Ends the child because of its current input; the next one is another child's."""
        self.end()
        index = self.left[0] if self.current is None else self.current
        self.left = self.left[self.left.index(index) + 1 :]
        if self.left:
            self.start()
        return index, reason

    def poll(self) -> Iterator[tuple[int, str]]:
        """Outcomes that are there."""
        try:
            while self.results.poll():
                index, outcome = self.results.recv()
                self.current, self.since = index, time.monotonic()
                if outcome is not None:
                    self.left = self.left[self.left.index(index) + 1 :]
                    self.current = None
                    yield index, outcome
        except EOFError:
            if self.left:
                self.process.join()
                yield self.lost(f"the process died ({self._signal()})")
            return
        if self.current is not None and time.monotonic() - self.since > TIME:
            yield self.lost(f"it took more than {TIME:g} seconds")

    def _signal(self) -> str:
        code = self.process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit {code}"


def fuzz(
    inputs: int,
    seconds: float,
    seed: int,
    kinds: Sequence[str],
    folder: Path,
    workers: int = 2,
) -> Report:
    """Reads inputs 0 to ``inputs`` of ``seed``, as many as there is time for.

    Args:
        folder: where counter examples are kept.
    """
    source = _Source(seed, tuple(kinds), {kind: KINDS[kind].make() for kind in kinds})
    start, counts, findings = time.monotonic(), Counter[str](), []
    crew = [_Worker(source, range(first, inputs, workers)) for first in range(workers)]
    try:
        while any(w.left for w in crew) and time.monotonic() - start < seconds:
            wait([w.results for w in crew if w.left], timeout=1.0)
            for index, outcome in (pair for w in crew if w.left for pair in w.poll()):
                counts[outcome if outcome in ("", "refused") else "bad"] += 1
                if outcome not in ("", "refused"):
                    findings.append(_kept(source, index, outcome, folder))
    finally:
        for worker in crew:
            worker.end()
    taken = time.monotonic() - start
    return Report(sum(counts.values()), counts[""], counts["refused"], taken, findings)


def _kept(source: _Source, index: int, reason: str, folder: Path) -> Finding:
    name, content = source.input(index)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{source.seed}-{index}-{name}"
    file.write_bytes(content)
    return Finding(name, index, reason, str(file))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="", help="beginnings of names, with commas; all")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "modcap-fuzz"))
    return parser.parse_args()


def main() -> int:
    import torch

    torch.set_num_threads(1)
    given = _arguments()
    wanted = tuple(given.kinds.split(","))
    kinds = [name for name in KINDS if name.startswith(wanted)]
    report = fuzz(given.inputs, given.seconds, given.seed, kinds, given.folder, given.workers)
    for finding in report.findings[:_LISTED]:
        print(f"{finding.file}: {finding.reason!r}", file=sys.stderr)
    bad = Counter(finding.kind for finding in report.findings)
    print(json.dumps({**vars(report), "findings": len(report.findings), "kinds": dict(bad)}))
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
