"""Pages of one file that need no network: what a run, or a sweep, came to. Equal reports give
equal bytes."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from modcap.flows.reports import charts, tables
from modcap.flows.reports.command import command_of
from modcap.flows.reports.document import RunReport, SweepCell, SweepReport
from modcap.flows.reports.layers import Layer, layers_in
from modcap.ptq.measured import Scale
from modcap.ptq.selection import Span

__all__ = ["page_of", "run_page", "sweep_page"]

_LINES = 6  # of a picture, at most
_WORST = 10  # classes that are shown first
_TWO_BIT, _FOUR_BIT = 2, 4


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("modcap.flows.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["change"] = tables.change
    made.filters |= {
        "count": lambda value: f"{value:,}",
        "number": tables.number,
        "percent": lambda value: f"{value:.2f} %",
        "signed": tables.signed,
        "size": _size,
        "capital": _capital,
    }
    return made


def _size(count: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.2f}\u00a0{name}"
    return f"{count} bytes"


def page_of(report: RunReport | SweepReport, artifact: bytes | None = None) -> str:
    """The page of either kind."""
    if isinstance(report, SweepReport):
        return sweep_page(report)
    return run_page(report, artifact)


def run_page(run: RunReport, artifact: bytes | None) -> str:
    """The page of a run.

    Args:
        run: its report.
        artifact: the packed network, where it is at hand: layers are read from it.
    """
    seen = {name: each.model_dump() for name, each in run.activations.items()}
    layers = [] if artifact is None else layers_in(artifact, seen)
    lines = _variants(run)
    boundaries = _boundaries(run)
    return (
        _environment()
        .get_template("run.html")
        .render(
            run=run,
            title=run.name or f"{run.checkpoint} {run.bits}",
            verdict=_Verdict(run),
            joined=[" + ".join(group) for group in run.groups if len(group) > 1],
            pictures=_pictures(run, layers, lines, boundaries),
            variants=tables.variants_of(run),
            lines=list(lines),
            depth=tables.by_depth(lines, run.modules),
            capacities=tables.by_module(run, boundaries),
            tried=[(str(each.k), tables.number(each.error)) for each in run.k_compared],
            layers=tables.layers_of(layers),
            levels=tables.levels_of(layers),
            weights=sum(each.weights for each in layers),
            macs=sum(each.macs for each in layers),
            outputs=tables.outputs_of(run),
            classes=tables.by_class(run),
            worst=_WORST,
            kinds=tables.by_kind(run),
            jobs=tables.jobs_of(run),
            command=run.command or command_of(run.checkpoint, run.recipe, run.request, run.source),
            origin=tables.origin_of(run),
        )
    )


@dataclass(frozen=True)
class _Verdict:
    """What stands at the top."""

    run: RunReport

    @property
    def times(self) -> float:
        return self.run.fp_bytes / max(1, self.run.artifact_bytes)

    @property
    def _least_bits(self) -> int:
        """Of weights."""
        asked = self.run.recipe.get("w_bits")
        usual = asked if isinstance(asked, int) else 8
        return min((each.w for each in self.run.layer_bits if each.w), default=usual)

    @property
    def runtimes(self) -> list[str]:
        """What it runs on, as it is, and after an export."""
        bits = self._least_bits
        needs = "any version with opset 13"
        if bits <= _TWO_BIT:
            needs = "1.25 or later, which knows 2-bit weights"
        elif bits <= _FOUR_BIT:
            needs = "1.20 or later, which knows 4-bit weights"
        return [
            "PyTorch on any CPU or GPU: modcap.load, or the registered MLflow model",
            f"onnxruntime {needs}: modcap export --format onnx",
        ]


def _variants(run: RunReport) -> dict[str, Sequence[float]]:
    """Losses over the depth of what was compared, the run itself last."""
    lines: dict[str, Sequence[float]] = {
        each.variant: each.losses for each in run.comparison if each.losses
    }
    return lines or {f"{run.method} k={run.k}": run.losses}


def _spans(run: RunReport) -> Iterator[Span]:
    start = 0
    for group in run.groups:
        yield Span(start, start + len(group))
        start += len(group)


def _boundaries(run: RunReport) -> list[charts.Marked]:
    """The differential at each boundary, and what became of it."""
    kinds = [
        charts.JOINED if chosen else charts.APART if alike else charts.UNLIKE
        for chosen, alike in zip(run.selected, run.homogeneous, strict=False)
    ]
    return list(zip(run.differentials, kinds, strict=False))


def _pictures(
    run: RunReport,
    layers: Sequence[Layer],
    lines: Mapping[str, Sequence[float]],
    boundaries: Sequence[charts.Marked],
) -> dict[str, Markup]:
    """By name, those for which there are figures."""
    drawn = {"loss": charts.loss_over_depth(lines, run.modules, list(_spans(run)))}
    if run.capacities and len(run.capacities) == len(run.modules):
        drawn["capacity"] = charts.capacities(run.capacities, run.modules)
        drawn["boundaries"] = charts.boundaries(boundaries, run.modules)
    if layers:
        rows = {each.place: each.histogram for each in layers if each.w_bits}
        drawn["histograms"] = charts.histograms(rows)
    return {name: Markup(svg) for name, svg in drawn.items()}  # charts escape texts


def sweep_page(sweep: SweepReport) -> str:
    """The page of a sweep."""
    cells = [cell for cell in sweep.cells if cell.finished]
    models = list(dict.fromkeys(cell.of for cell in sweep.cells))
    best = [cell for cell in cells if cell.name in set(sweep.best.values())]
    return (
        _environment()
        .get_template("sweep.html")
        .render(
            sweep=sweep,
            models=models,
            measured=" or ".join(scale.axis for scale in _by_scale(cells)),
            best=best,
            warnings=list(dict.fromkeys(text for cell in cells for text in cell.warnings)),
            failed=[(cell.name, cell.reason) for cell in sweep.cells if not cell.finished],
            cells=tables.cells_of(sweep),
            pictures=_overviews(models, cells),
            predicted=any(cell.predicted for cell in cells),
            depths=list(_depths(cells)),
        )
    )


def _overviews(models: Sequence[str], cells: Sequence[SweepCell]) -> dict[str, Markup]:
    """Pictures of all cells, by their captions."""
    drawn = {f"Size and {s.words}": _sizes(own, s) for s, own in _by_scale(cells).items()}
    for model in models:
        own = [cell for cell in cells if cell.of == model]
        if grid := _grid(model, own):
            name = _capital(own[0].scale.words)
            drawn[f"{name} of {model}, mean of its seeds and methods"] = grid
    return {name: Markup(svg) for name, svg in drawn.items()}  # charts escape texts


def _by_scale(cells: Sequence[SweepCell]) -> dict[Scale, list[SweepCell]]:
    found: dict[Scale, list[SweepCell]] = defaultdict(list)
    for cell in cells:
        found[cell.scale].append(cell)
    return found


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sizes(cells: Sequence[SweepCell], scale: Scale) -> str:
    several = len({cell.of for cell in cells}) > 1
    kind = "{0.of} {0.bits}" if several else "{0.bits}"
    predicted = [cell.predicted for cell in cells if cell.predicted is not None]
    points = [(c.artifact_bytes, c.figure, kind.format(c)) for c in cells]
    return charts.sizes(points, scale, predicted)


def _grid(model: str, cells: Sequence[SweepCell]) -> str | None:
    """The mean over seeds and methods, where there is more than one square."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for cell in cells:
        values[cell.bits, cell.k_asked].append(cell.figure)
    if len(values) < 2:
        return None
    means = {place: statistics.fmean(found) for place, found in values.items()}
    scale = cells[0].scale
    return charts.grid(means, f"{_capital(scale.words)} of {model} over bits and k", scale)


@dataclass(frozen=True)
class _Depth:
    """The cells of one model and bits side by side."""

    name: str
    picture: Markup
    lines: list[str]
    rows: list[tables.Row]


def _depths(cells: Sequence[SweepCell]) -> Iterator[_Depth]:
    together: dict[tuple[str, str], list[SweepCell]] = defaultdict(list)
    for cell in cells:
        together[cell.of, cell.bits].append(cell)
    for (model, bits), own in together.items():
        lines = {_line(cell): cell.losses for cell in own[:_LINES]}
        modules = own[0].modules
        picture = charts.loss_over_depth(lines, modules, [])
        rows = tables.by_depth(lines, modules)
        yield _Depth(f"{model} {bits}", Markup(picture), list(lines), rows)


def _line(cell: SweepCell) -> str:
    method, seed = cell.recipe.get("method"), cell.recipe.get("seed")
    k = f"{cell.k_asked}: {cell.k}" if cell.k_asked == "auto" else cell.k_asked
    return f"{method} k={k} seed={seed}"
