"""Rows of a benchmark in one JSON file: what has been measured is not measured again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Rows"]


class Rows:
    """Rows by name."""

    def __init__(self, path: Path, fresh: bool) -> None:
        self.path = path
        kept = path.exists() and not fresh
        self.rows: dict[str, dict[str, Any]] = json.loads(path.read_text()) if kept else {}

    def once(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row ``name``, measured unless it is known."""
        if name not in self.rows:
            print(f"{name} …", flush=True)
            self.rows[name] = measure()
            self.path.write_text(json.dumps(self.rows, indent=1) + "\n")
        return self.rows[name]
