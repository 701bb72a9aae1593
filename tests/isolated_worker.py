"""A module that a child process runs in tests: it does to itself what it is asked for."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from modcap.tasks.workers.child import Tell, serve

__all__: list[str] = []

_KEPT: list[bytearray] = []


def _memory(size: int) -> int:
    try:
        return len(bytearray(size))
    except MemoryError:
        return -1


def answer(request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    tell({"doing": request["do"]})
    value = request.get("value")
    print("noise on stdout", flush=True)
    match request["do"]:
        case "pid":
            return {"pid": os.getpid()}
        case "memory":
            return {"bytes": _memory(int(value))}
        case "keep":
            _KEPT.append(bytearray(int(value)))
        case "die when old" if _KEPT:
            os.abort()
        case "abort":
            os.abort()
        case "exit":
            os._exit(int(value))
        case "hang":
            signal.pause()
        case "spin":
            while True:
                pass
        case "write":
            Path(value).write_bytes(bytes(2**20))
        case "fork":
            if os.fork() == 0:
                time.sleep(60)
            signal.pause()
    return {"done": True}


if __name__ == "__main__":
    serve(answer)
