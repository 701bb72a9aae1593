"""The pictures of a run: oscillation over depth, capacity and selection, loss over steps."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from modcap.ptq.measured import USUAL, Scale
from modcap.ptq.selection import Span

__all__ = [
    "capacity",
    "curves",
    "heat_map",
    "oscillation",
    "pareto",
    "plan_graph",
    "png",
    "scaling",
]

_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#999999",
)  # Okabe and Ito: colour-blind safe
_MARKS = "os^DvPX<*hp"


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
        colour, mark = _COLOURS[index % len(_COLOURS)], _MARKS[index % len(_MARKS)]
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


def pareto(
    points: Sequence[tuple[int, float, str]],
    scale: Scale = USUAL,
    predicted: Sequence[tuple[int, float]] = (),
) -> Figure:
    """Size against what was measured; points are (bytes, figure, kind). The front is drawn as a
    line, and what was ``predicted``, as (bytes, figure), as another."""
    figure, axes = _figure(7.0, 4.2)
    kinds = list(dict.fromkeys(kind for _, _, kind in points))
    for index, kind in enumerate(kinds):
        own = [(size / 1000, value) for size, value, name in points if name == kind]
        colour, mark = _COLOURS[index % len(_COLOURS)], _MARKS[index // len(_COLOURS) % len(_MARKS)]
        xs, ys = zip(*own, strict=True)
        axes.scatter(xs, ys, color=colour, marker=mark, s=26, label=kind)
    front = scale.front((size / 1000, value) for size, value, _ in points)
    axes.plot(*zip(*front, strict=True), color="#555555", lw=1, ls="--", zorder=0, label="front")
    if predicted:
        places = sorted(set(predicted))
        ends = [size / 1000 for size, _ in places], [top1 for _, top1 in places]
        axes.plot(*ends, color="#999999", marker="x", ls=":", lw=1, zorder=0, label="predicted")
    axes.set_xlabel("artifact, kB")
    axes.set_ylabel(scale.axis)
    axes.legend(frameon=False, fontsize=8)
    return figure


def heat_map(values: Mapping[tuple[str, str], Sequence[float]], scale: Scale = USUAL) -> Figure:
    """What was measured over bits and k, the mean where a cell holds several seeds."""
    bits = sorted({bits for bits, _ in values})
    ks = sorted({k for _, k in values}, key=lambda k: (not k.isdecimal(), k.zfill(9)))  # auto last
    grid = [
        [sum(found) / len(found) if (found := values.get((b, k))) else math.nan for k in ks]
        for b in bits
    ]
    figure, axes = _figure(2.5 + 0.7 * len(ks), 1.6 + 0.5 * len(bits))
    image = axes.imshow(grid, aspect="auto", cmap="viridis")
    shown = [value for line in grid for value in line if not math.isnan(value)]
    middle = (min(shown) + max(shown)) / 2
    for row, line in enumerate(grid):
        for column, value in enumerate(line):
            if not math.isnan(value):
                colour = "white" if value < middle else "black"
                text = axes.text(column, row, scale.text(value), color=colour, fontsize=8)
                text.set(ha="center", va="center")
    axes.set_xticks(range(len(ks)), ks)
    axes.set_yticks(range(len(bits)), bits)
    axes.set_xlabel("k")
    figure.colorbar(image, label=scale.axis)
    return figure


def plan_graph(
    levels: Sequence[int],
    lanes: Sequence[int],
    kinds: Sequence[str],
    done: Sequence[bool],
    edges: Sequence[tuple[int, int]],
) -> Figure:
    """The graph of a plan: a dot per job, filled when it is done.

    Args:
        levels: longest path to each job, which is its column.
        lanes: its row.
        kinds: its kind, shown by colour.
        done: whether its result is in the store.
        edges: (needed, needing) as indices.
    """
    width, height = max(levels, default=0) + 1, max(lanes, default=0) + 1
    figure, axes = _figure(min(16.0, 6 + 0.45 * width), min(9.0, 2 + 0.12 * height))
    if edges:
        axes.add_collection(
            LineCollection(
                [[(levels[a], lanes[a]), (levels[b], lanes[b])] for a, b in edges],
                colors="#bbbbbb",
                linewidths=0.4,
                zorder=0,
            )
        )
    for index, kind in enumerate(dict.fromkeys(kinds)):
        colour = _COLOURS[index % len(_COLOURS)]
        for filled in (True, False):
            own = [i for i, k in enumerate(kinds) if k == kind and done[i] is filled]
            if own:
                axes.scatter(
                    [levels[i] for i in own],
                    [lanes[i] for i in own],
                    s=16,
                    marker=_MARKS[(index + index // len(_COLOURS)) % len(_MARKS)],
                    facecolor=colour if filled else "white",
                    edgecolor=colour,
                    linewidths=1,
                    label=f"{kind}, {'done' if filled else 'to do'} ({len(own)})",
                )
    axes.set_xlabel("stage")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def scaling(lines: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Makespan in hours against workers, both on logarithmic scales, beside perfect scaling."""
    figure, axes = _figure(6, 3.6)
    for index, (name, points) in enumerate(lines.items()):
        workers, hours = zip(*((n, seconds / 3600) for n, seconds in points), strict=True)
        colour = _COLOURS[index]
        axes.plot(workers, [hours[0] * workers[0] / n for n in workers], ":", color=colour, lw=1)
        axes.plot(workers, hours, _MARKS[index] + "-", color=colour, ms=4, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(workers, [str(n) for n in workers])
    axes.set_xlabel("workers")
    axes.set_ylabel("hours (dotted: perfect)")
    axes.legend(frameon=False)
    return figure
