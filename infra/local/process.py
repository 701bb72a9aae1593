"""Starting and stopping services as process groups that outlive the command."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

__all__ = ["alive", "start", "stop"]

_MARK = "MODCAP_STARTED_AS"
_started: list[subprocess.Popen[bytes]] = []  # they outlive this process: never waited for


def start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> dict[str, Any]:
    """Starts ``command`` in a session of its own; returns what identifies it later.

    What it writes is its user's alone. The mark in its environment, which all that it starts
    inherits, tells its processes from others that are given the same number later.
    """
    mark = secrets.token_hex(16)
    with os.fdopen(os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "ab") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment, _MARK: mark},
            cwd=log.parent,  # the folder of the command that started it may vanish
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            umask=0o077,
        )
    _started.append(process)
    created = psutil.Process(process.pid).create_time()
    return {"pid": process.pid, "created": created, "mark": mark}


def _process(known: Mapping[str, Any] | None) -> psutil.Process | None:
    """The process, if it is still the one that was started: pids are used again."""
    if not known:
        return None
    try:
        process = psutil.Process(known["pid"])
        same = abs(process.create_time() - known["created"]) < 1 and _marked(process, known)
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def _marked(process: psutil.Process, known: Mapping[str, Any]) -> bool:
    """Whether it, or what started it, was started by :func:`start` as ``known``."""
    with contextlib.suppress(psutil.Error):
        return bool(process.environ().get(_MARK) == known.get("mark") is not None)
    return False


def alive(known: Mapping[str, Any] | None) -> bool:
    """Whether the process that :func:`start` returned still runs."""
    return _process(known) is not None


def stop(known: Mapping[str, Any] | None, patience: float) -> bool:
    """Ends the process, its group and its descendants; by force after ``patience`` seconds.

    Returns:
        Whether there was anything to stop.
    """
    if not known:
        return False
    members = _members(known)
    if not members:
        return False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(known["pid"], signal.SIGTERM)
    _, left = psutil.wait_procs(members, timeout=patience)
    for process in {*left, *_members(known)}:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=5)
    return True


def _members(known: Mapping[str, Any]) -> list[psutil.Process]:
    """Everything in the session of the service, whose leader may be gone already.

    A session is ours if one in it bears the mark: its number may be that of somebody else's now.
    """
    leader = _process(known)
    below = set(leader.children(recursive=True)) if leader else set()
    session = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == known["pid"]:
                session.add(process)
    ours = leader is not None or any(_marked(process, known) for process in session)
    return list(below | session) if ours else []


def tail(log: Path, lines: int = 3) -> str:
    """The last lines of a log, for an error message."""
    with contextlib.suppress(OSError):
        return " / ".join(log.read_text(errors="replace").splitlines()[-lines:])
    return ""


def wait_until(ready: Any, known: Mapping[str, Any], seconds: float) -> bool:
    """Asks ``ready()`` until it is true, the process dies, or the time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if ready():
            return True
        if not alive(known):
            return False
        time.sleep(0.25)
    return False
