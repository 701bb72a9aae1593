"""What was prepared elsewhere, as the driver hears of it: JSON, without weights and images."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modcap.flows.requests.asked import Request
from modcap.flows.requests.request import Prepared, Ready, known_of
from modcap.jobs.job import Cell
from modcap.jobs.outline import Outline, outline_of
from modcap.ptq.metric_name import MetricName

__all__ = ["Description", "describe", "ready"]

_DIGEST = "^[0-9a-f]{64}$"


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _CellSaid(_Said):
    request: Request
    name: str
    calibration: str = Field(pattern=_DIGEST)
    evaluation: str = Field(pattern=_DIGEST)
    pixels: int = Field(ge=0)
    metric: MetricName = MetricName()

    @model_validator(mode="after")
    def _as_asked_for(self) -> _CellSaid:
        if self.metric.name != (self.request.metric or ""):
            raise ValueError("the metric is not the one that was asked for")
        return self


class Description(_Said):
    """Of the cells of one checkpoint, all of whose inputs lie in the store."""

    outline: Outline
    source: dict[str, str]
    fp_bytes: int
    measured: str
    classes: tuple[str, ...] | None
    warnings: tuple[str, ...]
    chance: float | None = Field(None, ge=0, le=100)
    cells: tuple[_CellSaid, ...] = Field(min_length=1)


def describe(prepared: Sequence[Prepared]) -> Description:
    """Of requests that were prepared together."""
    first = prepared[0]
    cells = tuple(
        _CellSaid(
            request=each.request,
            name=each.cell.name,
            calibration=each.cell.calibration,
            evaluation=each.cell.evaluation,
            pixels=each.cell.pixels,
            metric=each.cell.metric,
        )
        for each in prepared
    )
    return Description(
        outline=outline_of(first.network),
        source=first.source,
        fp_bytes=first.fp_bytes,
        measured=first.measured,
        classes=first.classes,
        warnings=first.warnings,
        chance=first.chance,
        cells=cells,
    )


def ready(description: Description) -> list[Ready]:
    """The cells to plan for."""
    said = description
    return [
        Ready(
            request=each.request,
            cell=Cell(
                said.outline,
                each.calibration,
                each.evaluation,
                each.request.recipe,
                each.name,
                each.pixels,
                known_of(said.source, said.classes),
                each.request.formats,
                each.metric,
            ),
            source=said.source,
            fp_bytes=said.fp_bytes,
            measured=said.measured,
            classes=said.classes,
            warnings=said.warnings,
            chance=said.chance,
        )
        for each in said.cells
    ]
