"""The gate in front of an alias, as people ask for it. Imports no server's client."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from modcap.data import sources

__all__ = ["Gate"]


class Gate(BaseModel):
    """What a version must meet to get an alias."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="registered model")
    alias: str = "champion"
    version: int | None = Field(None, description="by default the one with alias 'candidate'")
    data: str = Field(description=f"held-out images: {sources.HELP}")
    eval_images: int | None = Field(None, ge=1, description="test images to use; all by default")
    max_drop: float | None = Field(None, ge=0, description="top-1 points below full precision")
    max_bytes: int | None = Field(None, ge=1, description="size of the artifact")
    against: str | None = Field(None, description="alias whose version must not be more accurate")
