"""The rooms of the code, and who imports whom: for the test of the rule, and for its picture."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

__all__ = ["FLOORS", "ROOT", "Room", "imports_of", "room_of", "sources"]

ROOT = Path(__file__).parents[1]
TOP = ("modcap", "tasks", "flows", "infra")

Room = str

FLOORS: tuple[tuple[Room, ...], ...] = (
    ("core",),
    ("data",),
    ("graph",),
    ("checkpoints",),
    ("quantization",),
    ("ptq", "export"),
    ("recipe",),
    ("jobs",),
    ("zoo",),
    ("tasks.storage", "infra"),
    ("tasks.workers", "flows.requests"),
    ("flows.execution",),
    ("flows.reports",),
    ("api",),
    ("flows.registry",),
    ("flows",),
    ("flows.cli",),
)
"""From the ground up. A room imports rooms of floors below its own, and no other."""


def sources() -> Iterator[tuple[str, Path]]:
    """Every module as it is imported, and its file; links inside ``modcap/`` are passed over."""
    for top in TOP:
        for file in sorted((ROOT / top).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            if top == "modcap" and len(parts) > 1 and parts[1] in TOP:
                continue
            name = ".".join(parts).removesuffix(".__init__")
            yield name if top == "modcap" else f"modcap.{name}", file


def room_of(module: str) -> Room | None:
    """The room of a module of ours; None for the top itself."""
    _, *path = module.split(".")
    for length in (2, 1):
        name = ".".join(path[:length])
        if len(path) >= length and any(name in floor for floor in FLOORS):
            return name
    return ".".join(path[:2]) or None


def imports_of(file: Path) -> Iterator[str]:
    """Every module of ours that a file imports, wherever it does so."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "modcap")
