"""Export of an artifact to a file, outside any plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modcap.export import Export, Known, exporter_of, save
from modcap.flows.registry.artifacts import artifact_at

__all__ = ["export_artifact"]

_DIGESTS = ("source_digest", "network_digest", "recipe_digest", "data_digest")


def export_artifact(address: str, name: str, out: Path, opset: int) -> dict[str, Any]:
    """Writes the artifact at ``address`` (a path, s3:// or models:/) in the format ``name``."""
    exporter_of(name)
    data, tags = artifact_at(address)
    return {"artifact": address, **save(Export(data, opset, _known(tags)), name, out)}


def _known(tags: Mapping[str, str]) -> Known:
    digests = {name: tags[name] for name in _DIGESTS if name in tags}
    return Known(digests=digests, preprocess=tags.get("preprocess", ""))
