"""Pictures of a page: SVG that takes its colours from the page, narrow enough for a phone.

Depth runs down: a module is a row, and its name stands where text is read. Texts stay texts, and
lines differ in dashes and marks, too.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from typing import Any, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from modcap.ptq.measured import USUAL, Scale
from modcap.ptq.selection import Span

__all__ = [
    "APART",
    "JOINED",
    "UNLIKE",
    "Marked",
    "boundaries",
    "capacities",
    "grid",
    "histograms",
    "loss_over_depth",
    "short",
    "sizes",
]

JOINED, APART, UNLIKE = "joined", "not joined", "not homogeneous"

_INK = "#010203"  # becomes the colour of the text around
_LINES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
_FAINT = "#0a0b07"
_COLOURS = {_INK: "currentColor", _FAINT: "var(--faint)"} | {
    colour: f"var(--line-{index + 1})" for index, colour in enumerate(_LINES)
}
_DASHES = ("-", "--", ":", "-.")
_MARKS = "os^Dv<"
_WIDTH = 5.0  # inches of 72 units
_ROW = 0.235
_SPAN = 300.0  # of a logarithmic scale
_NAME = 20  # characters of a module beside its row
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "modcap",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
} | dict.fromkeys(
    ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK
)

Marked = tuple[float, str]
"""A value, and what it is: :data:`JOINED`, :data:`APART` or :data:`UNLIKE`."""


def _svg(draw: Callable[[Axes], None], rows: float, title: str, width: float = _WIDTH) -> str:
    """The picture that ``draw`` makes, as an element that stands in a page; ``title`` says what it
    shows to those who do not see it."""
    with matplotlib.rc_context(cast(Any, _STYLE)):
        figure = Figure(figsize=(width, rows), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    return _themed(buffer.getvalue(), title)


def _themed(svg: str, title: str) -> str:
    """Without prologue, colours by name, and readable by a machine that reads aloud."""
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    body = re.sub(r"<[^>]+>", _smaller, body)
    for colour, name in _COLOURS.items():
        body = re.sub(rf"(fill|stroke): {colour}\b", rf"\1: {name}", body)
    body = re.sub(r' (?:width|height)="[\d.]+pt"', "", body, count=2)
    return body.replace("<svg", f'<svg role="img" aria-label="{_attribute(title)}"', 1)


def _smaller(tag: re.Match[str]) -> str:
    """A tag without names of groups, which nothing refers to, and in hundredths of a point."""
    found = re.sub(r'^<g id="[^"]*"', "<g", tag[0])
    return re.sub(r"(\d\.\d\d)\d+", r"\1", found).replace(" \n", " ")


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def short(name: str, most: int = _NAME) -> str:
    """``name``, with its middle left out where it is long."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def _rows(axes: Axes, names: Sequence[str], last: float | None = None) -> None:
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim((len(names) if last is None else last) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _height(count: int, others: float = 1.0) -> float:
    return others + _ROW * max(count, 3)


def _logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """A scale of the largest two and a half decades of ``values``: what is less leaves the picture
    on the left, so that the others can be told apart. Without values above 0 it stays linear."""
    found = [value for value in values if 0 < value < math.inf]
    if not found:
        return
    high = 1.15 * max(found)
    low = max(0.85 * min(found), high / _SPAN)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    steps = (1, 2, 5) if high / low < 40 else (1, 3)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    shown = [tick for tick in ticks if low <= tick <= high]
    axes.set_xticks(shown, [f"{tick:.3g}" for tick in shown])
    axes.set_xticks([], minor=True)


def _legend(axes: Axes, columns: int = 2) -> None:
    axes.figure.legend(loc="outside lower center", ncols=columns, handlelength=2.4)


def _power(value: float) -> str:
    """One digit and a power of ten, such as 9e10."""
    digit, _, power = f"{value:.0e}".partition("e")
    return f"{digit}e{int(power)}"


def capacities(values: Sequence[float], names: Sequence[str]) -> str:
    """The capacity of each module."""

    def draw(axes: Axes) -> None:
        axes.barh(range(len(values)), values, 0.7, color=_LINES[0])
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("capacity")
        _rows(axes, names)

    return _svg(draw, _height(len(names)), "Capacity of each module")


def boundaries(values: Sequence[Marked], names: Sequence[str]) -> str:
    """The squared difference at each boundary, in its place between two modules."""
    looks = {JOINED: _LINES[1], APART: _LINES[0], UNLIKE: _FAINT}
    largest = max((value for value, _ in values), default=0.0) or 1.0

    def draw(axes: Axes) -> None:
        for kind, colour in looks.items():
            places = [index for index, (_, own) in enumerate(values) if own == kind]
            if places:
                heights = [values[index][0] for index in places]
                rows = [place + 0.5 for place in places]
                axes.barh(rows, heights, 0.6, color=colour, edgecolor=_INK, lw=0.6, label=kind)
        axes.set_xscale("symlog", linthresh=largest * 1e-4)
        axes.set_xticks([0, *(largest * 10**-power for power in (4, 2, 0))])
        axes.set_xticks([], minor=True)
        axes.set_xticklabels(["0", *(_power(largest * 10**-power) for power in (4, 2, 0))])
        axes.set_xlim(0, largest * 1.2)
        axes.set_xlabel("squared difference of capacities")
        _rows(axes, names)
        _legend(axes, 3)

    return _svg(draw, _height(len(names), 1.4), "Squared difference of capacity at each boundary")


def loss_over_depth(
    lines: Mapping[str, Sequence[float]], names: Sequence[str], groups: Sequence[Span]
) -> str:
    """The loss behind each module, a line for each variant; joined modules are shaded."""

    def draw(axes: Axes) -> None:
        label: str | None = "joined modules"
        for start, stop in groups:
            if stop - start > 1:
                axes.axhspan(start - 0.5, stop - 0.5, color=_FAINT, lw=0, label=label)
                label = None
        for (name, values), look in zip(
            lines.items(), islice(cycle(range(6)), len(lines)), strict=True
        ):
            style: dict[str, Any] = {"color": _LINES[look], "marker": _MARKS[look]}
            style["ls"] = _DASHES[look % len(_DASHES)]
            axes.plot(values, range(len(values)), ms=4, lw=1.8, label=short(name, 34), **style)
        _logarithmic(axes, [value for values in lines.values() for value in values])
        axes.set_xlabel("loss (error / energy of the output)")
        _rows(axes, names)
        _legend(axes)

    extra = 1.1 + 0.24 * -(-(len(lines) + 1) // 2)
    return _svg(draw, _height(len(names), extra), "Loss over depth")


def histograms(counts: Mapping[str, Sequence[int]]) -> str:
    """How often each level is used: a row for each layer, its lowest level on the left."""
    names = list(counts)

    def draw(axes: Axes) -> None:
        for row, values in enumerate(counts.values()):
            most = max(values, default=0) or 1
            edges = [index / len(values) for index in range(len(values) + 1)]
            heights = [row + 0.4 - 0.85 * value / most for value in values]
            axes.stairs(heights, edges, baseline=row + 0.4, fill=True, color=_LINES[0])
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 1], ["lowest level", "highest level"])
        axes.get_xticklabels()[0].set_horizontalalignment("left")
        axes.get_xticklabels()[1].set_horizontalalignment("right")
        axes.spines["left"].set_visible(False)
        _rows(axes, names)
        axes.grid(visible=False)

    return _svg(draw, _height(len(names), 0.6), "Use of the levels of weights")


def sizes(
    points: Sequence[tuple[int, float, str]],
    scale: Scale = USUAL,
    predicted: Sequence[tuple[int, float]] = (),
) -> str:
    """Size against what was measured: points are (bytes, figure, kind), and the front is drawn;
    beside it what was ``predicted`` as (bytes, figure)."""

    def draw(axes: Axes) -> None:
        kinds = list(dict.fromkeys(kind for _, _, kind in points))
        front = scale.front((size / 1000, value) for size, value, _ in points)
        axes.plot(*zip(*front, strict=True), color=_INK, lw=1, ls="--", label="best of its size")
        for index, kind in enumerate(kinds):
            own = [(size / 1000, value) for size, value, name in points if name == kind]
            mark = _MARKS[index // 6 % 6 if len(kinds) > 6 else index]
            xs, ys = zip(*own, strict=True)
            axes.scatter(xs, ys, s=30, color=_LINES[index % 6], marker=mark, label=short(kind, 30))
        if predicted:
            places = sorted(set(predicted))
            ends = [size / 1000 for size, _ in places], [top1 for _, top1 in places]
            axes.plot(*ends, color=_FAINT, marker="x", mec=_INK, ls=":", label="predicted")
        axes.set_xlabel("artifact, kB")
        axes.set_ylabel(scale.axis)
        axes.grid()
        _legend(axes)

    kinds = len({kind for _, _, kind in points}) + 1 + bool(predicted)
    return _svg(draw, 3.2 + 0.24 * -(-kinds // 2), f"Size and {scale.words} of all cells")


def grid(values: Mapping[tuple[str, str], float], title: str, scale: Scale = USUAL) -> str:
    """What was measured over bits (rows) and k (columns): a darker square is a better one."""
    rows = sorted({bits for bits, _ in values})
    columns = sorted({k for _, k in values}, key=lambda k: (not k.isdecimal(), k.zfill(9)))
    good = {place: scale.goodness(value) for place, value in values.items()}
    low, high = min(good.values()), max(good.values())

    def draw(axes: Axes) -> None:
        for (bits, k), value in values.items():
            x, y = columns.index(k), rows.index(bits)
            share = 0.08 + 0.42 * (good[bits, k] - low) / ((high - low) or 1.0)
            axes.barh(y, 0.94, 0.9, left=x - 0.47, color=_LINES[0], alpha=share)
            axes.text(x, y, scale.text(value), ha="center", va="center")
        axes.set_xticks(range(len(columns)), columns)
        axes.set_xlabel("k")
        _rows(axes, rows)
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)

    width = min(12.0, max(_WIDTH, 1.6 + 0.62 * len(columns)))
    return _svg(draw, 0.8 + 0.34 * len(rows), title, width)
