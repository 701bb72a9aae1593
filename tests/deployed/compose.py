"""The services of ``infra/compose/compose.yaml``, as Docker Compose would read them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = ["FILE", "Health", "Service", "services", "variables"]

FILE = Path(__file__).parents[2] / "infra/compose/compose.yaml"


@dataclass(frozen=True)
class Health:
    """How a container is asked whether it works.

    Attributes:
        command: ends with 0 if it does.
        interval: seconds between two questions.
        retries: answers other than yes before it counts as broken.
    """

    command: tuple[str, ...]
    interval: float
    retries: int


@dataclass(frozen=True)
class Service:
    """One service.

    Attributes:
        image: what it runs in; ``modcap`` is built by infra/image/Dockerfile.
        command: what it runs, entrypoint included; empty: what the image says.
        environment: its variables, beside those of the image.
        volumes: (name, folder inside) or (file, place inside); a file's path is absolute, or
            begins with a dot and is relative to compose.yaml.
        aliases: names of its host, beside its own.
        ports: what is published.
        needs: services that must run first, or be healthy where that is True.
    """

    name: str
    image: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    volumes: tuple[tuple[str, str], ...]
    needs: Mapping[str, bool]
    health: Health | None
    aliases: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()


class _Reader(yaml.SafeLoader):
    """Of Compose's files, which may say ``!reset``."""


class _Reset:
    """Instead of what an earlier file says: nothing."""


_Reader.add_constructor("!reset", lambda reader, node: _Reset())


def variables(file: Path) -> list[str]:
    """The names that an example.env asks for."""
    lines = file.read_text().splitlines()
    return [line.partition("=")[0] for line in lines if line and not line.startswith("#")]


def services(given: Mapping[str, str], *more: Path) -> dict[str, Service]:
    """All services by name; ``given`` are the variables of .env, each of which must be there.

    Args:
        more: files that say more, or something else, as those after ``docker compose -f``.
    """
    document: Any = {}
    for file in (FILE, *more):
        document = _merged(document, yaml.load(file.read_text(), _Reader))
    document = _filled(document, given)
    return {name: _service(name, found) for name, found in document["services"].items()}


def _merged(first: Any, second: Any) -> Any:
    """Mappings are merged, lists joined, and of all else the second holds."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first | {k: _merged(first[k], v) if k in first else v for k, v in second.items()}
    if isinstance(first, list) and isinstance(second, list):
        return [*first, *second]
    return [] if isinstance(second, _Reset) else second


def _filled(value: Any, given: Mapping[str, str]) -> Any:
    """``${NAME:?}`` replaced by the value of NAME, and ``$$`` by a dollar."""
    if isinstance(value, dict):
        return {key: _filled(each, given) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, given) for each in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"\$(?:(\$)|\{(\w+):\?\})", lambda m: "$" if m[1] else given[m[2]], value)


def _service(name: str, found: dict[str, Any]) -> Service:
    needs = found.get("depends_on", {})
    if isinstance(needs, list):
        needs = {each: {} for each in needs}
    return Service(
        name=name,
        image=found["image"],
        command=(*_words(found.get("entrypoint", [])), *_words(found.get("command", []))),
        environment={key: str(value) for key, value in found.get("environment", {}).items()},
        volumes=tuple(_volume(text) for text in found.get("volumes", [])),
        needs={k: v.get("condition") == "service_healthy" for k, v in needs.items()},
        health=_health(found.get("healthcheck")),
        ports=tuple(found.get("ports", [])),
        aliases=tuple(found.get("networks", {}).get("default", {}).get("aliases", [])),
    )


def _words(command: str | list[str]) -> list[str]:
    return shlex.split(command) if isinstance(command, str) else command


def _volume(text: str) -> tuple[str, str]:
    source, place = text.split(":")[:2]
    return source, place


def _health(found: dict[str, Any] | None) -> Health | None:
    if found is None:
        return None
    kind, *command = found["test"]
    words = command if kind == "CMD" else ["/bin/sh", "-c", *command]
    seconds = float(str(found.get("interval", "30s")).removesuffix("s"))
    return Health(tuple(words), seconds, int(found.get("retries", 3)))
