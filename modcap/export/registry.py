"""Formats: what an artifact can be written as. A new one is an entry here, and its file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from modcap.core.errors import Unavailable
from modcap.core.serialization import digest
from modcap.export.artifact import QuantizedNetwork, unpack_network

__all__ = ["Export", "Exporter", "Known"]


@dataclass(frozen=True)
class Known:
    """What only the maker of an artifact knows, for the metadata of files.

    Attributes:
        recipe: its fields.
        digests: sha256 by name, of the checkpoint, say.
        preprocess: as ``--preprocess`` takes it.
        classes: their names, in the order of the logits.
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    preprocess: str = ""
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Export:
    """An artifact to write.

    Attributes:
        artifact: its bytes.
        opset: of ONNX files.
        known: for metadata.
        images: (N, C, H, W) preprocessed, compared on beside random ones; may be None.
    """

    artifact: bytes
    opset: int = 25
    known: Known = Known()
    images: Tensor | None = None

    def __post_init__(self) -> None:
        """What the artifact itself says counts where ``known`` is silent."""
        given, own = self.known, self.network
        said = replace(
            given,
            preprocess=given.preprocess or own.preprocess,
            classes=given.classes or own.classes,
        )
        object.__setattr__(self, "known", said)

    @cached_property
    def network(self) -> QuantizedNetwork:
        """The artifact, unpacked."""
        return unpack_network(self.artifact)

    @property
    def digest(self) -> str:
        return digest(self.artifact)


@dataclass(frozen=True)
class Exporter:
    """A format.

    Attributes:
        requires: packages that it needs.
        suffix: of its files.
        write: the file's bytes, and what is to be said of it, for a report.
    """

    requires: tuple[str, ...]
    suffix: str
    write: Callable[[Export], tuple[bytes, dict[str, Any]]]

    def check(self, name: str) -> None:
        """Refuses early where a package is missing.

        Raises:
            Unavailable: one is.
        """
        for package in self.requires:
            if not _found(package):
                raise Unavailable(
                    f"{name} needs the package {package}: pip install 'modcap[export]'"
                )


def _found(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # it was taken out of sys.modules on purpose
        return False
