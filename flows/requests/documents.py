"""What people write in YAML or JSON files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modcap.core import documents
from modcap.core.errors import InputError

__all__ = ["read_mapping"]


def read_mapping(path: Path, name: str) -> dict[str, Any]:
    """The mapping in a file; ``name`` is what messages call it.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    values = documents.read(path, name)
    if not isinstance(values, Mapping):
        raise InputError(f"{name}: give a mapping of fields, such as 'w_bits: 2'")
    return dict(values)
