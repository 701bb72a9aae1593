"""Work on what is not trusted, in a process of its own, within limits of memory, time and files.

A :class:`Child` runs ``python -m MODULE``, whose main calls ``serve`` of
:mod:`modcap.tasks.workers.child`. Requests and answers are lines of JSON: nothing that the child
sends is ever executed here.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from modcap.core.errors import InputError

__all__ = ["Child", "Ended", "Limits"]

_START_SECONDS = 300  # for its imports, on a machine that is busy
_LONGEST = 32 * 2**20  # bytes of a line of its
_REUSED = 100  # requests to one process


@dataclass(frozen=True)
class Limits:
    """Of one request: bytes of memory beyond what the process has at its start, seconds, bytes of
    a file that is written, files open at once."""

    memory: int = 4 * 2**30
    seconds: float = 300.0
    file_bytes: int = 8 * 2**30
    files: int = 512

    @classmethod
    def from_environment(cls) -> Limits:
        """``MODCAP_ISOLATED_GIB`` and ``MODCAP_ISOLATED_SECONDS``, where they are set.

        Raises:
            InputError: one is no positive number.
        """
        gib = _positive("MODCAP_ISOLATED_GIB", cls.memory / 2**30)
        return cls(int(gib * 2**30), _positive("MODCAP_ISOLATED_SECONDS", cls.seconds))


def _positive(name: str, usual: float) -> float:
    said = os.environ.get(name) or str(usual)
    try:
        value = float(said)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise InputError(f"{name}={said!r} is not a positive number: mend or unset it")
    return value


class Ended(Exception):
    """A child ended without an answer.

    Attributes:
        how: what ended it, for people.
        doing: what it had said that it does, last.
        late: whether it was its time that ended it.
    """

    def __init__(self, how: str, doing: dict[str, Any], late: bool = False) -> None:
        super().__init__(how)
        self.how, self.doing, self.late = how, doing, late


class Child:
    """A warm process that answers requests, one after another; a fresh one follows one that died.

    It ends with the thread that started it, and by itself when it has nothing to do for a minute.
    """

    def __init__(self, module: str, limits: Limits) -> None:
        self._module, self._limits = module, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._answered = 0
        self._buffer = b""

    def ask(self, request: dict[str, Any]) -> Any:
        """The answer to ``request``; one that used the memory of earlier ones up is asked again.

        Raises:
            Ended: the process crashed, or needed more time than it has.
        """
        reused = self._answered > 0 and self._process is not None
        try:
            return self._ask(request)
        except Ended as ended:
            if not reused or ended.late:
                raise
        return self._ask(request)

    def close(self) -> None:
        """Ends the process, and all that it started."""
        if self._process is None:
            return
        process, self._process = self._process, None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in filter(None, (process.stdin, process.stdout)):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _ask(self, request: dict[str, Any]) -> Any:
        if self._answered >= _REUSED:
            self.close()
        process = self._process or self._start()
        doing: dict[str, Any] = {}
        deadline = time.monotonic() + self._limits.seconds
        try:
            _write(process, request)
            while "answer" not in (message := self._message(process, deadline)):
                doing = message
        except TimeoutError:
            self.close()
            said = f"it took longer than {self._limits.seconds:g} s"
            raise Ended(said, doing, late=True) from None
        except (OSError, ValueError):
            raise Ended(self._post_mortem(process), doing) from None
        self._answered += 1
        return message["answer"]

    def _start(self) -> subprocess.Popen[bytes]:
        own = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "MALLOC_ARENA_MAX": "2"}
        command = [sys.executable, "-m", self._module, str(os.getpid())]
        process = subprocess.Popen(
            command,
            env={**_environment(), **own},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._process, self._answered, self._buffer = process, 0, b""
        limits = self._limits
        try:
            _write(process, [limits.memory, limits.seconds, limits.file_bytes, limits.files])
            self._message(process, time.monotonic() + _START_SECONDS)
        except (OSError, ValueError):
            how = self._post_mortem(process)
            raise ChildProcessError(f"python -m {self._module} does not start: {how}") from None
        return process

    def _message(self, process: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
        assert process.stdout is not None
        pipe = process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise TimeoutError
            chunk = os.read(pipe, 1 << 16)
            if not chunk or len(self._buffer) > _LONGEST:
                raise ValueError("no whole line")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("no message")
        return message

    def _post_mortem(self, process: subprocess.Popen[bytes]) -> str:
        try:
            code: int | None = process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = None
        self.close()
        if code is None:
            return "its process sent what is no answer"
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended with {code}"


def _environment() -> dict[str, str]:
    """What a child may know: the store that it reads from and writes to, and no other service."""
    others = ("MLFLOW_", "PREFECT_")
    return {name: value for name, value in os.environ.items() if not name.startswith(others)}


def _write(process: subprocess.Popen[bytes], value: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(value).encode() + b"\n")
    process.stdin.flush()
