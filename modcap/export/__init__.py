"""Export: a quantized network in the formats that devices and runtimes read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modcap.core.errors import InputError
from modcap.export.encodings import write_encodings
from modcap.export.onnx import write_onnx
from modcap.export.pt2 import metadata_of_pt2, write_pt2
from modcap.export.registry import Export, Exporter, Known

__all__ = [
    "EXPORTERS",
    "Export",
    "Exporter",
    "Known",
    "exporter_of",
    "metadata_of_pt2",
    "require",
    "save",
]

EXPORTERS: dict[str, Exporter] = {
    "onnx": Exporter(("onnx", "onnxruntime"), ".onnx", write_onnx),
    "pt2": Exporter((), ".pt2", write_pt2),
    "encodings": Exporter(("onnx",), ".encodings.json", write_encodings),
    "safetensors": Exporter((), ".safetensors", lambda export: (export.artifact, {})),
}
"""Every format by its name."""


def exporter_of(name: str) -> Exporter:
    """The exporter of a format whose packages are installed.

    Raises:
        InputError: there is no such format.
        Unavailable: a package is missing.
    """
    if name not in EXPORTERS:
        raise InputError(f"format {name!r} is not known: give one of {', '.join(EXPORTERS)}")
    EXPORTERS[name].check(name)
    return EXPORTERS[name]


def require(names: Iterable[str]) -> None:
    """Refuses early a format that is unknown, or whose packages are missing."""
    for name in names:
        exporter_of(name)


def save(export: Export, name: str, path: str | Path) -> dict[str, Any]:
    """Writes the artifact in the format ``name`` to a file, whole or not at all.

    Returns:
        What is to be said of it: format, file, bytes, agreement with the artifact, …

    Raises:
        InputError: the format is unknown, the network has no form in it, or the path is wrong.
    """
    exporter = exporter_of(name)
    file = Path(path)
    if not file.parent.is_dir():
        raise InputError(f"--out {file}: the folder {file.parent} does not exist: make it first")
    data, said = exporter.write(export)
    _place(file, data)
    return {"format": name, "file": str(file), "bytes": len(data), **said}


def _place(file: Path, data: bytes) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".export-", delete=False) as part:
            part.write(data)
        Path(part.name).chmod(0o666 & ~_umask())
        Path(part.name).replace(file)
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror})") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
