"""The tables of a page: rows of texts, the first of which names the row."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from modcap.flows.reports import charts
from modcap.flows.reports.document import RunReport, SweepCell, SweepReport
from modcap.flows.reports.layers import Layer
from modcap.ptq.measured import Scale

__all__ = [
    "Row",
    "by_class",
    "by_depth",
    "by_kind",
    "by_module",
    "cells_of",
    "change",
    "jobs_of",
    "layers_of",
    "levels_of",
    "number",
    "origin_of",
    "outputs_of",
    "seconds",
    "signed",
    "variants_of",
]

Row = tuple[str, ...]


def number(value: float | None) -> str:
    """Four digits; all of a large one."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def signed(value: float) -> str:
    """Points of a percentage, with their sign."""
    return f"{value:+.2f}".replace("-", "−")


def change(scale: Scale, full: float, value: float) -> str:
    """From full precision to quantized, in words: better is plus."""
    better = -scale.lost(full, value)
    if scale.is_percent:
        return f"{signed(better)} points"
    return f"{abs(better):.4g} {'better' if better > 0 else 'worse'}"


def seconds(value: float) -> str:
    if value < 0.1:
        return "< 0.1 s"
    if value < 100:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 6000 else f"{value / 3600:.1f} h"


def variants_of(run: RunReport) -> list[Row]:
    """What the run was compared with, and itself, last."""
    return [
        (
            each.variant,
            run.scale.text(each.figure),
            "" if each.drop is None else run.scale.text(each.drop),
            f"{run.fp_bytes if each.artifact_bytes is None else each.artifact_bytes:,}",
            "" if each.groups is None else str(each.groups),
            "" if each.oscillation is None else number(each.oscillation),
            "" if each.final_error is None else number(each.final_error),
        )
        for each in run.comparison
    ]


def by_depth(lines: Mapping[str, Sequence[float]], modules: Sequence[str]) -> list[Row]:
    """The loss of each module, a column for each line."""
    columns = zip_longest(*lines.values())
    return [(module, *map(number, row)) for module, row in zip(modules, columns, strict=False)]


def by_module(run: RunReport, boundaries: Sequence[charts.Marked]) -> list[Row]:
    """Capacities, and what follows at each boundary."""
    after = [(number(value), kind) for value, kind in boundaries]
    return [
        (name, number(capacity), *(boundary or ("", "")))
        for name, capacity, boundary in zip_longest(
            run.modules, run.capacities, after[: len(run.modules) - 1]
        )
    ]


def layers_of(layers: Sequence[Layer]) -> list[Row]:
    return [
        (
            each.place,
            f"{each.w_bits or 'float'}/{each.a_bits or 'float'}",
            f"{each.weights:,}",
            f"{each.bytes:,}",
            f"{each.macs:,}",
            number(each.low),
            number(each.high),
            f"{100 * each.edge:.1f}" if each.w_bits else "–",
            _between(each.reach),
            _between(each.seen and each.seen[:2]),
            "–" if each.seen is None else f"{100 * each.seen[2]:.3f}",
        )
        for each in layers
    ]


def _between(ends: tuple[float, float] | None) -> str:
    return "–" if ends is None else f"{ends[0]:.3g} to {ends[1]:.3g}"


def levels_of(layers: Sequence[Layer]) -> list[Row]:
    """The counts behind the histograms."""
    return [(each.place, " ".join(map(str, each.histogram))) for each in layers if each.w_bits]


def outputs_of(run: RunReport) -> list[Row]:
    return [
        (each.name, " × ".join(map(str, each.shape)), number(each.error)) for each in run.outputs
    ]


def by_class(run: RunReport) -> list[Row]:
    """Classes with test images, the one that loses most first."""
    if run.per_class is None:
        return []
    counts = run.per_class
    names = run.classes or [str(index) for index in range(len(counts.images))]
    shares = [
        (100 * (hits - full) / images, name, images, 100 * full / images, 100 * hits / images)
        for name, images, full, hits in zip(
            names, counts.images, counts.fp_hits, counts.hits, strict=False
        )
        if images
    ]
    return [
        (name, f"{images:,}", f"{full:.2f}", f"{quantized:.2f}", signed(change))
        for change, name, images, full, quantized in sorted(shares, key=lambda each: each[0])
    ]


def by_kind(run: RunReport) -> list[Row]:
    """Jobs, and time, of each kind, in the order of the first of each."""
    spent: dict[str, float] = defaultdict(float)
    for job in run.job_times:
        spent[job.kind] += job.seconds
    counts = Counter(job.kind for job in run.job_times)
    return [(kind, str(counts[kind]), seconds(total)) for kind, total in spent.items()]


def jobs_of(run: RunReport) -> list[Row]:
    return [(job.label, job.kind, seconds(job.seconds)) for job in run.job_times]


def origin_of(run: RunReport) -> list[Row]:
    """Where checkpoint and images came from, and what was made."""
    rows: list[Row] = [(name.replace("_", " "), value) for name, value in run.source.items()]
    made = {
        "artifact": run.artifact,
        "artifact sha256": run.artifact_digest,
        "registered model": " version ".join(filter(None, (run.model_name, run.model_version))),
        "MLflow run": run.mlflow_run_url,
    }
    rows += [pair for pair in made.items() if pair[1]]
    return rows


def _good(cell: SweepCell) -> float:
    return cell.scale.goodness(cell.figure)


def cells_of(sweep: SweepReport) -> list[Row]:
    """Finished cells, the best first."""
    finished = [cell for cell in sweep.cells if cell.finished]
    return [
        (
            cell.name,
            cell.scale.text(cell.figure),
            cell.scale.text(cell.drop),
            "–" if cell.agreement is None else f"{cell.agreement:.2f}",
            f"{cell.artifact_bytes:,}",
            f"auto: {cell.k}" if cell.k_asked == "auto" else cell.k_asked,
            number(cell.oscillation),
            number(cell.final_error),
        )
        for cell in sorted(finished, key=lambda cell: (-_good(cell), cell.artifact_bytes))
    ]
