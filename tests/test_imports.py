"""Imports go one way, and nothing in the repository depends on the machine it was written on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rooms import FLOORS, ROOT, imports_of, room_of, sources

CORE = {"torch", "numpy", "safetensors", "pydantic"} | set(sys.stdlib_module_names)
LAZY = {
    "torchvision",
    "timm",
    "PIL",
    "yaml",
    "onnx",
    "onnxruntime",
    "scipy",
}  # only where they are needed
MACHINE = re.compile(
    r"(?<![\w.])/(work|home|root|opt|tmp/bash)/|pypi\.|pythonhosted|download\.pytorch|\.internal\b"
)
METHOD = ("core", "data", "checkpoints", "graph", "quantization", "ptq", "export", "recipe", "jobs")


def floor_of(room: str) -> int:
    (floor,) = (index for index, rooms in enumerate(FLOORS) if room in rooms)
    return floor


def test_every_module_is_in_a_room() -> None:
    rooms = {room_of(name) for name, _ in sources()} - {None, "tasks"}  # the package itself
    assert rooms == {room for floor in FLOORS for room in floor}


@pytest.mark.parametrize(("name", "file"), list(sources()), ids=[name for name, _ in sources()])
def test_imports_go_down(name: str, file: Path) -> None:
    own = room_of(name)
    if own is None:  # the front door shows what lies behind it
        return
    for imported in imports_of(file):
        other = room_of(imported)
        assert other, f"{name} imports modcap itself: name the room"
        lower = other == own or floor_of(other) < floor_of(own)
        assert lower, f"{name} imports {imported}: {own} lies no higher than {other}"


def test_the_method_knows_nothing_of_its_surroundings() -> None:
    for name, file in sources():
        if room_of(name) not in METHOD:
            continue
        for library, at_once in libraries(file):
            known = library in CORE | {"modcap"} or (library in LAZY and not at_once)
            assert known, f"{name} imports {library}"


def libraries(file: Path) -> Iterator[tuple[str, bool]]:
    """Top-level packages that a file imports, and whether it does so at once."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        for name in names:
            yield name.split(".")[0], node in tree.body


def test_nothing_is_imported_relatively_or_by_a_name_in_a_string() -> None:
    """Which the rule above would not see."""
    for name, file in sources():
        text = file.read_text(encoding="utf-8")
        relative = [
            n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom) and n.level
        ]
        assert not relative, name
        if name == "modcap":  # the front door, which holds nothing but names
            continue
        assert not re.search(r"""import_module\(\s*f?["']modcap|__import__""", text), name


def test_importing_the_library_starts_nothing() -> None:
    heavy = "{'ray', 'prefect', 'mlflow', 'boto3', 'torchvision'}"
    code = f"import sys, modcap; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_no_path_or_registry_of_one_machine() -> None:
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, files.stdout.split("\0")):
        file = ROOT / name
        if not file.is_file() or file == Path(__file__):
            continue
        text = file.read_bytes().decode("utf-8", errors="ignore")
        found = None if "\0" in text else MACHINE.search(text)
        assert not found, f"{name} names {found and found.group()!r}"
