"""The pictures of a run: oscillation over depth, capacity and selection, loss over steps."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from modcap.selection import Span

__all__ = ["capacity", "curves", "oscillation", "png"]

_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
)  # Okabe and Ito: colour-blind safe
_MARKS = "os^Dv"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _name_modules(axes: Axes, modules: Sequence[str]) -> None:
    axes.set_xticks(range(len(modules)), modules, rotation=60, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlim(-0.6, len(modules) - 0.4)


def _width(modules: Sequence[str]) -> float:
    return max(6.0, 2 + 0.38 * len(modules))


def oscillation(
    losses: Mapping[str, Sequence[float]], modules: Sequence[str], groups: Sequence[Span]
) -> Figure:
    """Relative loss of each module behind the quantized prefix; one line per variant.

    Groups of more than one module are shaded.
    """
    figure, axes = _figure(_width(modules), 4.2)
    shaded = False
    for start, stop in groups:
        if stop - start > 1:
            label = None if shaded else "reconstructed jointly"
            axes.axvspan(start - 0.45, stop - 0.55, color="#999999", alpha=0.25, lw=0, label=label)
            shaded = True
    for index, (name, values) in enumerate(losses.items()):
        colour, mark = _COLOURS[index % 5], _MARKS[index % 5]
        axes.plot(range(len(values)), values, color=colour, marker=mark, ms=4, lw=1.5, label=name)
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("squared error / energy of the output")
    axes.set_title("Loss over depth, everything before quantized", loc="left", fontsize=10)
    _name_modules(axes, modules)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, frameon=False, ncols=2)
    return figure


def capacity(
    capacities: Sequence[float],
    differentials: Sequence[float],
    selected: Sequence[bool],
    allowed: Sequence[bool],
    modules: Sequence[str],
) -> Figure:
    """Capacity of each module above, squared differential at each boundary below."""
    figure = Figure(figsize=(_width(modules), 6.0), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(1, 1))
    top.bar(range(len(modules)), capacities, color="#999999")
    top.set_ylabel("capacity")
    top.set_title("Module capacity, and the boundaries it selects", loc="left", fontsize=10)
    kinds = ("joined", _COLOURS[1]), ("not joined", _COLOURS[0]), ("not homogeneous", "#DDDDDD")
    for name, colour in kinds:
        places = [i for i in range(len(differentials)) if _kind(selected[i], allowed[i]) == name]
        if places:
            heights = [differentials[i] for i in places]
            bottom.bar([i + 0.5 for i in places], heights, 0.6, color=colour, label=name)
    bottom.set_ylabel("squared difference")
    bottom.set_yscale("symlog", linthresh=max(max(differentials, default=1.0), 1e-9) * 1e-4)
    bottom.legend(fontsize=8, frameon=False)
    _name_modules(bottom, modules)
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    return figure


def _kind(selected: bool, allowed: bool) -> str:
    return "joined" if selected else "not joined" if allowed else "not homogeneous"


def curves(losses: Mapping[str, Any]) -> Figure:
    """Reconstruction loss over steps, a small panel for each group; values (points, 2)."""
    columns = min(5, max(1, len(losses)))
    rows = -(-len(losses) // columns) or 1
    figure = Figure(figsize=(2.4 * columns, 1.7 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (name, points) in zip(panels, losses.items(), strict=False):
        axes.plot(points[:, 0], points[:, 1], color=_COLOURS[0], lw=1)
        axes.set_title(name, fontsize=7)
        axes.tick_params(labelsize=6)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(losses) :]:
        axes.set_visible(False)
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("reconstruction loss", fontsize=8)
    return figure


def png(figure: Figure) -> bytes:
    """The picture; the same bytes for the same figure."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
