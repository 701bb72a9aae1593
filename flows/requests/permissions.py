"""What an uploader may decide of a checkpoint in a scan; all else is the policy's.

Whoever puts objects into a bucket chooses no code, no model of somebody else, and no place that
the policy does not name: what a manifest or the metadata of weights says is checked here, before
anything of it is read, imported or called.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from modcap.checkpoints.architecture import published, split
from modcap.core.errors import InputError

__all__ = ["Permissions"]

_FASHION = "fashion-mnist"
_FILES = (".json", ".yaml", ".yml")  # of preprocessing; else it is written out


def _factory(name: str) -> str:
    try:
        split(name)
    except InputError:
        raise ValueError("give package.module:factory") from None
    return name


def _prefix(place: str) -> str:
    if place != _FASHION and not _plain(place.rstrip("/")):
        raise ValueError(
            f"give s3://bucket/prefix, without dots and doubled slashes, or {_FASHION}"
        )
    return place


class Permissions(BaseModel):
    """What manifests and metadata may name, beside what the rule itself names.

    Example:
        >>> Permissions(data_below=["s3://b/images"]).check_place("s3://b/images/a.npz", "data", ())
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    factories: tuple[Annotated[str, AfterValidator(_factory)], ...] = Field(
        (), description="package.module:factory that is imported and called for who names it"
    )
    data_below: tuple[Annotated[str, AfterValidator(_prefix)], ...] = Field(
        (), description="s3:// prefixes of images and preprocessing; or fashion-mnist"
    )

    def check_architecture(self, architecture: str) -> None:
        """Raises InputError where an uploader may not name it."""
        named = architecture.partition("?")[0]  # options are of a closed list
        if named not in self.factories and not published(architecture):
            raise InputError(
                f"architecture {architecture!r} is not for an uploader to choose: name "
                "torchvision:NAME, timm:NAME, or a factory that the policy lists (factories)"
            )

    def check_place(self, place: str, field: str, own: tuple[str | None, ...]) -> None:
        """Raises InputError where a manifest may not name ``place``; ``own`` are the rule's."""
        if place not in own and not any(_below(place, prefix) for prefix in self.data_below):
            raise InputError(
                f"its manifest's {field} {place!r} is not below what the policy allows "
                "(data_below): leave it out, or ask for that place to be added"
            )

    def check_preprocess(self, text: str, own: str | None) -> None:
        """Raises InputError where it is a file that a manifest may not name."""
        if text.endswith(_FILES) or "://" in text:
            self.check_place(text, "preprocess", (own,))


def _plain(address: str) -> bool:
    """Whether it is an s3:// address whose parts all are what they seem."""
    parts = address.removeprefix("s3://").split("/")
    plain = not {"", ".", ".."}.intersection(parts) and address.isprintable()
    return plain and address.startswith("s3://")


def _below(place: str, prefix: str) -> bool:
    """By whole parts: ``s3://b/ab`` is not below ``s3://b/a``."""
    if prefix == _FASHION:
        return place == prefix
    return _plain(place) and place.startswith(prefix.rstrip("/") + "/")
