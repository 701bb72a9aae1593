"""The gate in front of an alias, as people ask for it. Imports no server's client."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from modcap.data import sources
from modcap.flows.requests.asked import known_metric
from modcap.recipe import Device

__all__ = ["Gate"]


class Gate(BaseModel):
    """What a version must meet to get an alias."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="registered model")
    alias: str = Field("champion", description="alias that the version gets")
    version: int | None = Field(None, description="by default the one with alias 'candidate'")
    data: str = Field(
        "", description=f"held-out images: {sources.HELP}; all but a rollback needs them"
    )
    eval_images: int | None = Field(None, ge=1, description="test images to use; all by default")
    metric: str | None = Field(
        None,
        description="what is measured, as of modcap quantize; by default what fits the images",
    )
    min_top1: float | None = Field(None, ge=0, le=100, description="percent of top-1 that it needs")
    max_drop: float | None = Field(
        None, ge=0, description="points of top-1, or of the metric, it may lose"
    )
    max_bytes: int | None = Field(None, ge=1, description="bytes that it may take")
    against: str | None = Field(None, description="alias whose version must not be more accurate")
    device: Device = Field(
        Device.AUTO, description="that measures; auto takes a GPU where torch finds one"
    )

    @field_validator("metric")
    @classmethod
    def _is_known(cls, metric: str | None) -> str | None:
        return known_metric(metric)

    @model_validator(mode="after")
    def _asks_for_something(self) -> Gate:
        if not self.conditions:
            raise ValueError(
                "nothing is asked of the version, so anything would pass: give --min-top1, "
                "--max-drop, --max-bytes or --against"
            )
        if self.min_top1 is not None and self.metric not in (None, "top1"):
            raise ValueError(f"--min-top1 asks for top-1, and --metric {self.metric} for another")
        return self

    @property
    def conditions(self) -> dict[str, float | str]:
        """What a version must meet, by its name."""
        names = ("min_top1", "max_drop", "max_bytes", "against")
        asked = {name: getattr(self, name) for name in names}
        return {name: value for name, value in asked.items() if value is not None}
