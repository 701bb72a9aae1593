"""The embedded default: SeaweedFS, MLflow, Prefect and Ray on loopback, started when missing.

Services whose address the environment names are used as they are and never started. What is
started outlives the command, until ``modcap stack down``; data, ports and credentials stay under
``$MODCAP_HOME``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modcap.core.messages import without_password
from modcap.infra.local import process
from modcap.infra.local.home import Home
from modcap.infra.local.services import NAMES, QUIET, Service, failed, service

__all__ = ["NAMES", "Endpoints", "ServiceStatus", "down", "logins", "status", "up"]

_VARIABLES = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MODCAP_BUCKET"),
    "mlflow": ("MLFLOW_TRACKING_URI",),
    "prefect": ("PREFECT_API_URL",),
    "ray": ("RAY_ADDRESS",),
}
_START_SECONDS = 120


@dataclass(frozen=True)
class Endpoints:
    """Addresses and credentials of what runs, as environment variables."""

    exports: dict[str, str]

    def environment(self) -> dict[str, str]:
        """What a driver needs in its environment; holds secrets."""
        return {**QUIET, **self.exports}


@dataclass(frozen=True)
class ServiceStatus:
    """A service as a person sees it; ``state`` is running, stopped or configured."""

    name: str
    state: str
    address: str
    pid: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _configured(name: str, own: Service | None = None) -> str | None:
    """The address that the environment names, unless it is that of the stack itself."""
    address = next((os.environ[v] for v in _VARIABLES[name] if os.environ.get(v)), None)
    return None if own and address == own.address else address


def _say_nothing(line: str) -> None:
    pass


def up(
    home: Path | None = None,
    services: Sequence[str] = NAMES,
    report: Callable[[str], None] = _say_nothing,
) -> Endpoints:
    """Starts what is missing of ``services`` and waits until all of it works.

    Raises:
        ModcapError: a service did not come up; the message holds the end of its log.
    """
    place = Home.at(home)
    with place.locked():
        state = place.read()
        exports: dict[str, str] = {}
        unready: list[Service] = []
        clients: dict[str, str] = {}
        for name in NAMES:
            own = service(name, place, state, clients)
            if _configured(name, own):
                continue
            if name in services:
                if not _runs(own, state):
                    own = _start(own, place, state, clients, report)
                if not state["processes"][name].get("ready"):  # a start was interrupted
                    unready.append(own)
                exports |= own.exports
                place.write(state)
            clients |= own.exports
        _await(unready, place, state)
    return Endpoints(exports)


def _runs(own: Service, state: dict[str, Any]) -> bool:
    """Whether it runs, and as it would be started now: where S3 moved, who used it moves, too."""
    known = state["processes"].get(own.name)
    return process.alive(known) and state["processes"][own.name].get("as") == own.digest


def _start(
    own: Service,
    place: Home,
    state: dict[str, Any],
    clients: dict[str, str],
    report: Callable[[str], None],
) -> Service:
    """Starts it, at other ports where somebody took those that it had."""
    process.stop(state["processes"].get(own.name), patience=4)  # a crash may have left something
    if place.lost_ports(state, own.name):
        place.forget_ports(state, own.name)
        own = service(own.name, place, state, clients)
    report(f"starting {own.name} at {own.address}")
    started = process.start(own.command, {**QUIET, **own.environment}, place.log(own.name))
    state["processes"][own.name] = started | {"as": own.digest}
    return own


def _await(services: Sequence[Service], place: Home, state: dict[str, Any]) -> None:
    def wait(own: Service) -> bool:
        return process.wait_until(own.ready, state["processes"][own.name], _START_SECONDS)

    with ThreadPoolExecutor(len(NAMES)) as pool:
        for own, works in zip(services, pool.map(wait, services), strict=True):
            if not works:
                log = place.log(own.name)
                process.stop(state["processes"].pop(own.name), patience=1)
                place.forget_ports(state, own.name)  # somebody may have taken one
                place.write(state)
                raise failed(own, log, process.tail(log))
            state["processes"][own.name]["ready"] = True
    place.write(state)


def down(home: Path | None = None) -> list[str]:
    """Stops everything that :func:`up` started, and returns the names; data stays."""
    place = Home.at(home)
    with place.locked():
        state = place.read()
        known = {n: state["processes"].pop(n, None) for n in reversed(NAMES)}
        with ThreadPoolExecutor(len(NAMES)) as pool:
            stopped = list(pool.map(lambda item: process.stop(item, patience=4), known.values()))
        place.write(state)
    return [name for name, there in zip(known, stopped, strict=True) if there]


def status(home: Path | None = None) -> list[ServiceStatus]:
    """What runs, what does not, and what the environment configures."""
    place = Home.at(home)
    state = place.read()
    found = []
    for name in NAMES:
        known = state["processes"].get(name)
        address = _address(name, state)
        other = _configured(name)
        if other and other != address:
            found.append(ServiceStatus(name, "configured", without_password(other)))
        elif process.alive(known):
            found.append(ServiceStatus(name, "running", address, known["pid"]))
        else:
            found.append(ServiceStatus(name, "stopped", ""))
    return found


def logins(home: Path | None = None) -> Path:
    """The file of passwords, which only its owner reads."""
    return Home.at(home).path / "credentials.json"


def _address(name: str, state: dict[str, Any]) -> str:
    port = state["ports"].get("ray-port" if name == "ray" else name, "")
    suffix = "/api" if name == "prefect" else ""
    return f"127.0.0.1:{port}" if name == "ray" else f"http://127.0.0.1:{port}{suffix}"
