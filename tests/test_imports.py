"""Imports go one way, and nothing in the repository depends on the machine it was written on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "modcap": {"modcap"},
    "tasks": {"tasks", "modcap"},
    "infra": {"infra", "modcap"},
    "flows": {"flows", "tasks", "infra", "modcap"},
}
OWN = set(ALLOWED)
CORE = {"torch", "numpy", "safetensors", "pydantic"} | set(sys.stdlib_module_names)
LAZY = {"torchvision", "timm", "PIL", "yaml", "onnx", "onnxruntime"}  # only where they are needed
MACHINE = re.compile(
    r"(?<![\w.])/(work|home|root|opt|tmp/bash)/|pypi\.|pythonhosted|download\.pytorch|\.internal\b"
)


def imported(file: Path) -> Iterator[tuple[str, bool]]:
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


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_go_one_way(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        wrong = {name for name, _ in imported(file)} & OWN - ALLOWED[package]
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def test_the_method_knows_nothing_of_its_surroundings() -> None:
    for file in (ROOT / "modcap").rglob("*.py"):
        for name, at_once in imported(file):
            known = name in CORE | {"modcap"} or (name in LAZY and not at_once)
            assert known or "TYPE_CHECKING" in file.read_text(), f"{file.name} imports {name}"


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
