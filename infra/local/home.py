"""The stack's folder: credentials, ports and process ids, logs and data, under one lock."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modcap.infra.local.private import private_folder, write_private

__all__ = ["Home"]

_GRPC = 10_000  # SeaweedFS listens for gRPC on each port plus this
_PORTS = range(21_000, 31_000)
_PLAIN = re.compile(r"[A-Za-z0-9_./-]{1,36}")  # a path below which sockets may lie


@dataclass(frozen=True)
class Home:
    """``$MODCAP_HOME``, by default ``~/.modcap``."""

    path: Path

    @staticmethod
    def place() -> Path:
        """Where it is, or would be made."""
        return Path(os.environ.get("MODCAP_HOME") or Path.home() / ".modcap")

    @classmethod
    def at(cls, path: Path | None = None) -> Home:
        """The folder, which nobody but its owner may look into.

        Raises:
            InputError: it belongs to another user, or cannot be made.
        """
        home = cls(private_folder(path or cls.place(), "MODCAP_HOME"))
        home.folder("logs")
        return home

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder against other processes; waits for them."""
        with os.fdopen(os.open(self.path / "lock", os.O_CREAT | os.O_RDWR, 0o600), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def folder(self, name: str) -> Path:
        """A folder for a service's data."""
        found = self.path / name
        found.mkdir(parents=True, exist_ok=True, mode=0o700)
        return found

    def sockets(self, state: dict[str, Any]) -> Path:
        """A folder for sockets, whose paths must be short, and plain for Ray: below this one where
        its path is, else one of the same mode among the temporary ones; noted in ``state``."""
        inside = self.folder("sockets")
        if _PLAIN.fullmatch(str(inside)):
            return inside
        known = Path(state.get("sockets", inside))
        if known == inside or known.is_symlink() or not _own(known):
            known = Path(tempfile.mkdtemp(prefix="modcap-", dir="/tmp"))
            state["sockets"] = str(known)
        return known

    def log(self, service: str) -> Path:
        return self.path / "logs" / f"{service}.log"

    def read(self) -> dict[str, Any]:
        """Ports and processes as last written."""
        try:
            state: dict[str, Any] = json.loads((self.path / "stack.json").read_text())
        except (OSError, ValueError):
            state = {}
        return {"ports": {}, "processes": {}, **state}

    def write(self, state: dict[str, Any]) -> None:
        write_private(self.path / "stack.json", json.dumps(state, indent=1))

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

    def lost_ports(self, state: dict[str, Any], service: str) -> bool:
        """Whether somebody else listens where ``service`` did."""
        return not all(_free(port) for port in _of(service, state["ports"]).values())

    def forget_ports(self, state: dict[str, Any], service: str) -> None:
        """Lets ``service`` have other ports at its next start."""
        for name in _of(service, state["ports"]):
            del state["ports"][name]


def _of(service: str, ports: dict[str, int]) -> dict[str, int]:
    return {n: p for n, p in ports.items() if n.partition("-")[0] == service}


def _own(folder: Path) -> bool:
    return folder.is_dir() and folder.stat().st_uid == os.getuid()


def _shuffled() -> list[int]:
    ports = list(_PORTS)
    secrets.SystemRandom().shuffle(ports)
    return ports


def _free(port: int) -> bool:
    for number in (port, port + _GRPC):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what just ended is free
            try:
                probe.bind(("127.0.0.1", number))
            except OSError:
                return False
    return True
