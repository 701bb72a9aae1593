"""Checks the CUDA paths on one GPU, within eight minutes, and writes what it found.

    make check-gpu                      # or: python -m benchmarks.check_gpu
    python -m benchmarks.check_gpu --device cpu --quick    # the script itself, without a GPU

Each section is a process of its own with a time limit; one that fails does not end the others, and
the results are written after each: OUT/check_gpu.json and OUT/check_gpu.md. It needs torch for the
GPU, pytest and what `python -m benchmarks.check_gpu.wheels` fetches; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.check_gpu.table import page
from benchmarks.places import ROOT

_LEAST = 5.0  # seconds: less is no use to a section


def main(arguments: Sequence[str] | None = None) -> int:
    args = _arguments(arguments)
    if args.section:
        return _one(args)
    out, found = Path(args.out), dict[str, Any]()
    out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * args.minutes
    for name, limit in _chosen(args).items():
        seconds = min(limit, ends - time.monotonic())
        found[name] = _apart(name, args, seconds) if seconds > _LEAST else {"error": "no time left"}
        _compare(found)
        print(f"{name}: {found[name].get('error') or 'done'}", flush=True)
        _write(out, found)
    print(page(found))
    return int(any("error" in figures for figures in found.values()))


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "check_gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny networks, few images")
    parser.add_argument("--only", default="", help="sections, such as equal,ray")
    parser.add_argument("--minutes", type=float, default=7.5, help="for all sections")
    parser.add_argument("--out", default=os.environ.get("OUT", "benchmarks/results"))
    parser.add_argument("--section", help=argparse.SUPPRESS)
    return parser.parse_args(given)


def _chosen(args: argparse.Namespace) -> dict[str, float]:
    """The sections and their limits in seconds."""
    from benchmarks.check_gpu.sections import SECTIONS

    names = args.only.split(",") if args.only else list(SECTIONS)
    return {name: SECTIONS[name].seconds for name in names}


def _apart(name: str, args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """The figures of a section, run in a process group of its own."""
    command = [sys.executable, "-m", "benchmarks.check_gpu", "--section", name]
    command += ["--device", args.device, *(["--quick"] if args.quick else [])]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    start = time.monotonic()
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},  # of Ray's workers, too
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        said = json.dumps({"error": f"not done after {seconds:.0f} s"})
    finally:
        _end(child)
    took = {"section_seconds": round(time.monotonic() - start, 1)}
    try:
        return json.loads(said.splitlines()[-1]) | took
    except (IndexError, ValueError):
        return {"error": f"ended with {child.returncode}, and said nothing"} | took


def _compare(found: dict[str, Any]) -> None:
    """Two processes must have given the same bytes."""
    first, again = ({**found.get(name, {})} for name in ("determinism", "again"))
    took = first.pop("section_seconds", None), again.pop("section_seconds", None)
    if None not in took and not {"error"} & (first.keys() | again.keys()) and first != again:
        found["again"]["error"] = "another process gave other bytes"


def _end(child: subprocess.Popen[str]) -> None:
    """Ends it, and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdout is not None:
        child.stdout.close()


def _one(args: argparse.Namespace) -> int:
    """Runs a section in this process, and prints its figures as the last line."""
    from benchmarks.check_gpu.sections import SECTIONS
    from benchmarks.check_gpu.subject import Asked

    try:
        figures = SECTIONS[args.section].run(Asked(args.device, args.quick))
    except Exception as error:
        traceback.print_exc()
        figures = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(figures), flush=True)
    return int("error" in figures)


def _write(out: Path, found: dict[str, Any]) -> None:
    (out / "check_gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "check_gpu.md").write_text(page(found))


if __name__ == "__main__":
    sys.exit(main())
