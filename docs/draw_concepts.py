"""Draws the pictures of docs/concepts.md from a shipped network and a run of it.

From the root of the repository: ``python -m docs.draw_concepts``. Modules, layers, capacities are
those of MobileNetV2 x0.5, computed here; losses and groups those of the sweep in
benchmarks/results/sweep.json, which quantized it for real. A test says when a picture is old.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from html import escape
from itertools import pairwise
from typing import Any

from modcap.flows.reports.capacities import measure_capacity
from modcap.flows.requests.asked import Request
from modcap.flows.requests.without_images import prepare_to_look
from modcap.recipe import Recipe
from tests.rooms import ROOT

__all__ = ["FOLDER", "PICTURES"]

FOLDER = ROOT / "docs/images/concepts"

_WIDTH, _ROW, _TOP, _NAME = 440, 24, 46, 120
_INK, _FAINT, _LINE = "#202124", "#5f6368", "#9aa0a6"
_BLUE, _ORANGE, _YELLOW, _GREEN = "#1a73e8", "#d9570a", "#fde293", "#ceead6"
_ZOOMED = "features.5.conv"


def _request() -> Request:
    folder = ROOT / "examples/fashion_mnist/checkpoints"
    return Request(
        checkpoint=str(folder / "mobilenet_v2_x0_5.safetensors"),
        arch="modcap.zoo:mobilenet_v2_x0_5",
        recipe=Recipe.preset("quick", w_bits=2, a_bits=4),
    )


@cache
def _network() -> Any:
    return prepare_to_look(_request()).network


@cache
def _capacities() -> list[float]:
    return [float(value) for value in measure_capacity(_request())["capacities"]]


@cache
def _cells() -> dict[str, Any]:
    """Of the sweep, by bits and k."""
    report = json.loads((ROOT / "benchmarks/results/sweep.json").read_text(encoding="utf-8"))
    return {f"{cell['bits']} {cell['k_asked']}": cell for cell in report["cells"]}


def modules() -> str:
    """The chain of modules, and the layers of one."""
    network = _network()
    parts = [_text(20, 26, "20 modules, in order", _INK, weight=600)]
    for row, name in enumerate(network.names):
        chosen = name == _ZOOMED
        parts.append(_box(20, _y(row), _NAME + 4, _short(name), _YELLOW if chosen else "#e8f0fe"))
    at = network.names.index(_ZOOMED)
    paths = network.paths[at]
    top = _y(at) - 30
    parts.append(f'<path d="M{_NAME + 24} {_y(at) + 9} L190 {top + 10}" stroke="{_LINE}"/>')
    parts.append(_text(190, top - 12, f"inside {_short(_ZOOMED)}:", _INK, weight=600))
    kinds = ("1 × 1, more channels", "3 × 3, each channel alone", "1 × 1, fewer channels")
    for row, (path, kind) in enumerate(zip(paths, kinds, strict=True)):
        parts.append(_box(190, top + 48 * row, 230, path, _YELLOW))
        parts.append(_text(196, top + 48 * row + 33, kind, _FAINT))
    parts.append(_text(190, top + 152, "and its shortcut: input + result", _FAINT))
    return _svg(_y(len(network.names)) + 10, parts)


def boundary() -> str:
    """Where one tensor is alive, and where two are."""
    names = ["features.4.conv", _ZOOMED, "features.6.conv"]
    parts = [_text(20, 26, "A boundary: one tensor passes", _INK, weight=600)]
    for row, name in enumerate(names):
        top = 50 + 120 * row
        fill = _YELLOW if name == _ZOOMED else "#e8f0fe"
        parts.append(f'<rect x="60" y="{top}" width="150" height="74" rx="6" fill="{fill}"/>')
        parts.append(_text(135, top + 20, _short(name), _INK, "middle", 600))
        if name != "features.4.conv":
            parts.append(
                f'<path d="M75 {top} V{top + 66} H135" fill="none" stroke="{_ORANGE}" '
                'stroke-dasharray="4 3"/>'
            )
        parts.append(_text(150, top + 44, "3 layers", _FAINT, "middle"))
        parts.append(f'<path d="M135 {top + 74} V{top + 118}" stroke="{_BLUE}" stroke-width="3"/>')
        if row < 2:
            parts.append(f'<path d="M40 {top + 97} H230" stroke="{_BLUE}" stroke-dasharray="6 4"/>')
            parts.append(_text(240, top + 101, "boundary: may be joined", _BLUE))
    parts.append(_text(240, 218, "no boundary in here: the", _ORANGE))
    parts.append(_text(240, 235, "shortcut is a second tensor", _ORANGE))
    return _svg(420, parts)


def capacity() -> str:
    """Bars of all modules."""
    values = _capacities()
    largest = max(values)
    title = "Capacity: parameters × bits (× 1.6 at stride 2)"
    parts = [_text(20, 26, title, _INK, weight=600)]
    for row, (name, value) in enumerate(zip(_network().names, values, strict=True)):
        parts.append(_text(20, _y(row) + 13, _short(name)))
        width = max(1.0, 220 * value / largest)
        parts.append(_bar(_NAME + 20, _y(row), width, _BLUE))
        parts.append(_text(_NAME + 26 + width, _y(row) + 13, _figure(value), _FAINT))
    return _svg(_y(len(values)) + 6, parts)


def oscillation() -> str:
    """Loss over depth, at two widths."""
    lines = {"W2A4 0": _ORANGE, "W4A4 0": _BLUE}
    names = _network().names
    largest = max(max(_cells()[key]["losses"]) for key in lines)
    parts = [_text(20, 26, "Loss behind each module: it rises and falls", _INK, weight=600)]
    for row, name in enumerate(names):
        parts.append(_text(20, _y(row) + 13, _short(name)))
        parts.append(f'<path d="M{_NAME + 20} {_y(row) + 9} H425" stroke="#e8eaed"/>')
    for key, colour in lines.items():
        losses = _cells()[key]["losses"]
        points = [(_NAME + 20 + 270 * x / largest, _y(row) + 9) for row, x in enumerate(losses)]
        path = " ".join(f"{x:.1f},{y}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y}" r="3.5" fill="{colour}"/>' for x, y in points]
    end = _y(len(names)) + 12
    parts.append(_text(_NAME + 20, end, "0", _FAINT))
    parts.append(_text(425, end, f"{largest:.2f} of the output's energy", _FAINT, "end"))
    parts.append(_text(20, end + 22, "● weights of 2 bits", _ORANGE))
    parts.append(_text(200, end + 22, "● weights of 4 bits", _BLUE))
    return _svg(end + 36, parts)


def joining() -> str:
    """Squared differences of capacities at boundaries, and what was joined for them."""
    names, values, groups = _network().names, _capacities(), _cells()["W2A4 4"]["groups"]
    jumps = [(a - b) ** 2 for a, b in pairwise(values)]
    joined = {a for group in groups for a, _ in pairwise(group)}
    parts = [_text(20, 26, "Joined: where neighbours differ most (k = 4)", _INK, weight=600)]
    for group in groups:
        if len(group) > 1:
            first, last = names.index(group[0]), names.index(group[-1])
            height = _ROW * (last - first + 1)
            place = f'x="14" y="{_y(first) - 3}" width="412" height="{height}" rx="6"'
            parts.append(f'<rect {place} fill="{_GREEN}"/>')
    for row, name in enumerate(names):
        parts.append(_text(20, _y(row) + 13, _short(name)))
    for row, (jump, name) in enumerate(zip(jumps, names, strict=False)):
        width = 270 * (jump / max(jumps)) ** 0.25
        parts.append(_bar(_NAME + 20, _y(row) + 15, width, _ORANGE if name in joined else _LINE, 8))
    end = _y(len(names)) + 12
    parts.append(_text(20, end, "bars: squared difference (its fourth root);", _FAINT))
    parts.append(_text(20, end + 18, "grey ones are smaller, or between unlike modules", _FAINT))
    return _svg(end + 32, parts)


PICTURES: dict[str, Callable[[], str]] = {
    each.__name__: each for each in (modules, boundary, capacity, oscillation, joining)
}


def _y(row: int) -> int:
    return _TOP + _ROW * row


def _short(name: str) -> str:
    return name.removesuffix(".conv").removesuffix(".0")


def _figure(value: float) -> str:
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.1f} k"


def _text(
    x: float, y: float, said: str, fill: str = _INK, anchor: str = "start", weight: int = 400
) -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" fill="{fill}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(said)}</text>'
    )


def _bar(x: float, y: float, width: float, fill: str, height: int = 16) -> str:
    return f'<rect x="{x}" y="{y}" width="{width:.1f}" height="{height}" rx="2" fill="{fill}"/>'


def _box(x: float, y: float, width: float, said: str, fill: str) -> str:
    box = f'<rect x="{x}" y="{y}" width="{width}" height="19" rx="4" fill="{fill}"/>'
    return box + _text(x + 6, y + 14, said)


def _svg(height: float, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" '
        'font-family="system-ui, sans-serif" font-size="13">'
    )
    ground = f'<rect width="{_WIDTH}" height="{height:.0f}" rx="8" fill="#ffffff"/>'
    return "\n".join([head, ground, *parts, "</svg>", ""])


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")
