"""What a page is made of: the report of a run or of a sweep, as it lies in a file.

Such a file may come from anyone. Fields that are missing leave their part of the page out.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modcap.core import documents
from modcap.core.errors import InputError
from modcap.core.messages import parse
from modcap.ptq.measured import TOP1, Scale

__all__ = ["RunReport", "SweepReport", "read_report", "report_of"]

_BYTES = 32 * 2**20
_MOST = 4096
_Text = Annotated[str, Field(max_length=4096)]
_Texts = Annotated[list[_Text], Field(max_length=_MOST)]
_Numbers = Annotated[list[float], Field(max_length=_MOST)]
_Marks = Annotated[list[bool], Field(max_length=_MOST)]
_Percent = Annotated[float, Field(ge=0, le=100)]
_Count = Annotated[int, Field(ge=0)]


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Measured(_Read):
    """A figure, quantized and, where there is one, in full precision; of top-1 under that name."""

    value: float | None = None
    fp_value: float | None = None
    top1: _Percent | None = None
    fp_top1: _Percent | None = None

    @property
    def figure(self) -> float:
        found = self.top1 if self.value is None else self.value
        return math.nan if found is None else found

    @property
    def full(self) -> float:
        found = self.fp_top1 if self.fp_value is None else self.fp_value
        return math.nan if found is None else found


class _Scaled(_Measured):
    """What it was measured in, too."""

    metric: _Text = TOP1
    metric_title: _Text = "top-1 %"
    higher_is_better: bool = True

    @property
    def scale(self) -> Scale:
        return Scale(self.metric, self.metric_title, self.higher_is_better)


class Variant(_Measured):
    """What a run was compared with, or itself."""

    variant: _Text
    drop: float | None = None
    oscillation: float | None = None
    final_error: float | None = None
    artifact_bytes: _Count | None = None
    groups: _Count | None = None
    losses: _Numbers = []


class Classes(_Read):
    """Test images of each class, and how many were recognised, by its number."""

    images: list[_Count] = Field(max_length=_MOST)
    fp_hits: list[_Count] = Field(max_length=_MOST)
    hits: list[_Count] = Field(max_length=_MOST)


class JobTime(_Read):
    """A job, and how long it took when it was done."""

    label: _Text
    kind: _Text
    seconds: Annotated[float, Field(ge=0)]


class Activation(_Read):
    """What an activation quantizer saw."""

    low: float
    high: float
    clipped: Annotated[float, Field(ge=0, le=1)]


class OutputError(_Read):
    """One of several outputs, and its relative error."""

    name: _Text
    shape: list[_Count] = Field(max_length=8)
    error: float


class Compared(_Read):
    """A k that was tried, and the error that it had."""

    k: _Count
    error: float | None


class Allocation(_Read):
    """What was said of bits when they were chosen."""

    average_bits: float
    predicted_bytes: _Count
    predicted_error: float | None = None
    predicted_drop: float | None = None


class LayerWidths(_Read):
    """Bits of a layer's weights and input; 0 is float."""

    layer: _Text
    w: Annotated[int, Field(ge=0, le=8)]
    a: Annotated[int, Field(ge=0, le=8)]


class RunReport(_Scaled):
    """Of one quantization: what ``quantize --json`` prints, or a cell of ``sweep --json``."""

    checkpoint: _Text
    recipe: dict[str, Any]
    bits: _Text
    layer_bits: list[LayerWidths] = Field([], max_length=_MOST)
    allocation: Allocation | None = None
    method: _Text
    modules: _Texts = Field(min_length=1)
    groups: list[_Texts] = Field(max_length=_MOST)
    k: _Count
    images: _Count
    oscillation: float
    losses: _Numbers
    final_error: float
    artifact_bytes: _Count
    fp_bytes: _Count
    name: _Text = ""
    k_asked: _Text = ""
    k_compared: list[Compared] = Field([], max_length=_MOST)
    artifact: _Text = ""
    artifact_digest: _Text = ""
    source: dict[_Text, _Text] = {}
    request: dict[_Text, Any] = {}
    command: _Text = ""
    classes: _Texts | None = None
    warnings: _Texts = []
    agreement: _Percent | None = None
    comparison: list[Variant] = Field([], max_length=_MOST)
    capacities: _Numbers = []
    differentials: _Numbers = []
    homogeneous: _Marks = []
    selected: _Marks = []
    per_class: Classes | None = None
    job_times: list[JobTime] = Field([], max_length=_MOST)
    activations: dict[_Text, Activation] = {}
    outputs: list[OutputError] = Field([], max_length=_MOST)
    model_name: _Text = ""
    model_version: _Text = ""
    mlflow_run_url: _Text = ""

    @model_validator(mode="after")
    def _has_figures(self) -> RunReport:
        if math.isnan(self.figure) or math.isnan(self.full):
            raise ValueError("top1 and fp_top1, or value and fp_value, are missing")
        return self


class SweepCell(_Scaled):
    """A cell of a sweep; a failed one has no figures."""

    name: _Text
    label: _Text = ""
    model_name: _Text
    state: _Text
    bits: _Text
    allocation: Allocation | None = None
    k_asked: _Text
    recipe: dict[str, Any]
    reason: _Text = ""
    checkpoint: _Text = ""
    k: _Count | None = None
    modules: _Texts = []
    losses: _Numbers = []
    images: _Count = 0
    drop: float = 0.0
    oscillation: float = 0.0
    final_error: float = 0.0
    artifact_bytes: _Count = 0
    fp_bytes: _Count = 0
    agreement: _Percent | None = None
    warnings: _Texts = []

    @property
    def of(self) -> str:
        """Its checkpoint, by name; reports of earlier versions named the model so."""
        return self.label or self.model_name

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def predicted(self) -> tuple[int, float] | None:
        """Bytes, and the figure if every answer that was predicted to change were wrong then; for
        measures that count answers."""
        if self.allocation is None or self.allocation.predicted_drop is None:
            return None
        if self.metric not in (TOP1, "agreement"):
            return None
        full = self.full if self.metric == TOP1 else 100.0
        return self.allocation.predicted_bytes, max(0.0, full - self.allocation.predicted_drop)


class SweepReport(_Read):
    """What ``sweep --json`` prints."""

    cells: list[SweepCell] = Field(min_length=1, max_length=_MOST)
    best: dict[_Text, _Text | None] = {}
    jobs: dict[_Text, _Count] = {}
    reconstructions: dict[_Text, float] = {}
    mlflow_run_url: _Text = ""


def report_of(values: Any, name: str) -> RunReport | SweepReport:
    """The report in plain values; messages call it ``name``.

    Raises:
        InputError: they are none.
    """
    if not isinstance(values, dict) or not {"cells", "losses"} & values.keys():
        raise InputError(
            f"{name} is no report of a run or a sweep: give what modcap quantize --json or modcap "
            "sweep --json printed, or report.json of a run"
        )
    if "cells" in values:
        return parse(SweepReport, values, name)
    return parse(RunReport, values, name)


def read_report(file: Path, name: str) -> RunReport | SweepReport:
    """The report in a file.

    Raises:
        InputError: it cannot be read, or is none.
    """
    return report_of(documents.read(file, name, _BYTES), name)
