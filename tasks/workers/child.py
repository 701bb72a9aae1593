"""The other side of :mod:`modcap.tasks.workers.isolation`: a process that answers on its pipes."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["Tell", "serve"]

Tell = Callable[[dict[str, Any]], None]
"""Says what is done next, for the case that it is the last that is heard."""

_IDLE_SECONDS = 60
_PR_SET_PDEATHSIG = 1


def serve(answer: Callable[[dict[str, Any], Tell], dict[str, Any]]) -> None:
    """Answers requests until there are none for a minute, or who asked is gone.

    What anything else prints goes to stderr.
    """
    _end_with_parent(int(sys.argv[1]))
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    memory, seconds, file_bytes, files = json.loads(_line(requests))
    for kind, most in (
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, files),
        (resource.RLIMIT_CORE, 0),
    ):
        _limit(kind, most)
    _send(pipe, {"ready": True})
    while select.select([requests], [], [], _IDLE_SECONDS)[0] and (line := _line(requests)):
        _limit(resource.RLIMIT_AS, _size() + memory)
        _limit(resource.RLIMIT_CPU, _used() + seconds)
        found = answer(json.loads(line), lambda said: _send(pipe, said))
        _send(pipe, {"answer": found})


def _end_with_parent(parent: int) -> None:
    """Ends this process when the one that started it does (Linux; elsewhere, when it reads)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _limit(kind: int, most: float) -> None:
    """Lowers or raises a limit of this process, up to what its user may have."""
    _, hard = resource.getrlimit(kind)
    wanted = int(most) if hard == resource.RLIM_INFINITY else min(int(most), hard)
    with contextlib.suppress(ValueError, OSError):  # macOS knows no limit of addresses
        resource.setrlimit(kind, (wanted, hard))


def _size() -> int:
    """Bytes of addresses that this process has."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[0]
        return int(pages) * resource.getpagesize()
    except FileNotFoundError:
        return 0


def _used() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime + 1


def _line(pipe: Any) -> bytes:
    found: bytes = pipe.readline()
    return found


def _send(pipe: BinaryIO, message: dict[str, Any]) -> None:
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.flush()
