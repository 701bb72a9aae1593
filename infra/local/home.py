"""The stack's folder: credentials, ports and process ids, logs and data, under one lock."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modcap.core.errors import InputError

__all__ = ["Home"]

_GRPC = 10_000  # SeaweedFS listens for gRPC on each port plus this
_PORTS = range(21_000, 31_000)


@dataclass(frozen=True)
class Home:
    """``$MODCAP_HOME``, by default ``~/.modcap``."""

    path: Path

    @classmethod
    def at(cls, path: Path | None = None) -> Home:
        """The folder, made if it is missing, readable by its owner alone."""
        chosen = path or Path(os.environ.get("MODCAP_HOME") or Path.home() / ".modcap")
        try:
            chosen.mkdir(parents=True, exist_ok=True, mode=0o700)
            (chosen / "logs").mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                f"MODCAP_HOME {chosen}: cannot be made ({error.strerror}): name another folder"
            ) from None
        return cls(chosen.resolve())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder against other processes; waits for them."""
        with (self.path / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def folder(self, name: str) -> Path:
        """A folder for a service's data."""
        found = self.path / name
        found.mkdir(parents=True, exist_ok=True)
        return found

    def log(self, service: str) -> Path:
        return self.path / "logs" / f"{service}.log"

    def read(self) -> dict[str, Any]:
        """Ports and processes as last written."""
        try:
            state: dict[str, Any] = json.loads((self.path / "stack.json").read_text())
        except (OSError, ValueError):
            state = {}
        return {"ports": state.get("ports", {}), "processes": state.get("processes", {})}

    def write(self, state: dict[str, Any]) -> None:
        draft = self.path / "stack.json.new"
        draft.write_text(json.dumps(state, indent=1))
        draft.replace(self.path / "stack.json")

    def secret(self, name: str, make: Any = secrets.token_hex) -> str:
        """A random secret, made at first use and kept in a file only its owner reads."""
        file = self.path / "credentials.json"
        known: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
        if name not in known:
            known[name] = make(20)
            write_private(file, json.dumps(known))
        return known[name]

    def port(self, state: dict[str, Any], name: str) -> int:
        """The port that ``name`` had before, or else a free one; noted in ``state``."""
        ports: dict[str, int] = state["ports"]
        if name not in ports:
            taken = set(ports.values())
            ports[name] = next(p for p in _shuffled() if p not in taken and _free(p))
        return ports[name]

    def forget_ports(self, state: dict[str, Any], service: str) -> None:
        """Lets ``service`` have other ports at its next start."""
        kept = {n: p for n, p in state["ports"].items() if n.partition("-")[0] != service}
        state["ports"] = kept


def write_private(file: Path, text: str) -> None:
    """Writes ``text`` so that no one but the owner can ever read it."""
    draft = file.with_name(f"{file.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as opened:
        opened.write(text)
    draft.replace(file)


def _shuffled() -> list[int]:
    ports = list(_PORTS)
    secrets.SystemRandom().shuffle(ports)
    return ports


def _free(port: int) -> bool:
    for number in (port, port + _GRPC):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", number))
            except OSError:
                return False
    return True
