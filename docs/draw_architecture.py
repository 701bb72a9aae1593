"""Draws the rooms of the code, by its imports, into docs/images/architecture.svg.

From the root of the repository: ``python -m docs.draw_architecture``. An arrow says that a room
imports another one; what follows from other arrows is left out.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from html import escape
from pathlib import Path
from textwrap import wrap

from tests.rooms import FLOORS, ROOT, Room, imports_of, room_of, sources

__all__ = ["PICTURE", "draw", "edges"]

PICTURE = ROOT / "docs/images/architecture.svg"

_WIDTH, _HEIGHT, _GAP = 340, 74, 38
_COLOURS = {"flows": "#e8f0fe", "tasks": "#e6f4ea", "infra": "#e6f4ea"}  # the method: the last
_METHOD = "#fef7e0"


def edges() -> dict[Room, set[Room]]:
    """Which rooms each room imports."""
    found: dict[Room, set[Room]] = defaultdict(set)
    for name, file in sources():
        own = room_of(name)
        for imported in imports_of(file):
            other = room_of(imported)
            if own and other and other != own:
                found[own].add(other)
    return dict(found)


def _needed(found: dict[Room, set[Room]]) -> list[tuple[Room, Room]]:
    """The arrows that do not follow from others."""

    def reached(room: Room) -> set[Room]:
        return set().union(*({below} | reached(below) for below in found.get(room, ())))

    return sorted(
        (room, below)
        for room, direct in found.items()
        for below in direct
        if not any(below in reached(other) for other in direct - {below})
    )


def _sentence(room: Room) -> str:
    """The first sentence of a room's docstring."""
    path = room.replace(".", "/")
    places = (f"modcap/{path}/__init__.py", f"modcap/{path}.py", f"{path}/__init__.py")
    file = next(ROOT / place for place in places if (ROOT / place).exists())
    said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(said.split()).split(". ")[0].rstrip(".") + "."


def draw() -> str:
    """The picture, as SVG: the same for the same imports."""
    widest = max(map(len, FLOORS))
    width = widest * (_WIDTH + _GAP) + _GAP
    height = len(FLOORS) * (_HEIGHT + _GAP) + _GAP
    place: dict[Room, tuple[float, float]] = {}
    for row, floor in enumerate(reversed(FLOORS)):
        left = (width - len(floor) * (_WIDTH + _GAP) + _GAP) / 2
        for column, room in enumerate(floor):
            place[room] = left + column * (_WIDTH + _GAP), _GAP + row * (_HEIGHT + _GAP)
    lines = [_arrow(place[a], place[b]) for a, b in _needed(edges())]
    boxes = [_box(room, *at) for room, at in place.items()]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            'font-family="system-ui, sans-serif" font-size="13">',
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
            'markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z" fill="#80868b"/></marker>'
            "</defs>",
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            *lines,
            *boxes,
            "</svg>\n",
        ]
    )


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    x, y = start[0] + _WIDTH / 2, start[1] + _HEIGHT
    to_x, to_y = end[0] + _WIDTH / 2, end[1] - 2
    side = 0.0
    if to_y - y > _HEIGHT + _GAP:  # around what lies between
        side = (_WIDTH + _GAP) * (1 if x >= to_x else -1)
    bend = f"C{x + side:g} {y + 40:g} {to_x + side:g} {to_y - 40:g} {to_x:g} {to_y:g}"
    return (
        f'<path d="M{x:g} {y:g} {bend}" fill="none" stroke="#80868b" stroke-width="1.2" '
        'marker-end="url(#tip)"/>'
    )


def _box(room: Room, x: float, y: float) -> str:
    colour = _COLOURS.get(room.split(".")[0], _METHOD)
    said = "".join(
        f'<text x="{x + 12:g}" y="{y + 42 + 17 * row:g}" fill="#3c4043">{escape(line)}</text>'
        for row, line in enumerate(wrap(_sentence(room), 44)[:2])
    )
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="{colour}" '
        f'stroke="#9aa0a6"/><text x="{x + 12:g}" y="{y + 22:g}" font-weight="bold" '
        f'fill="#202124">{room}</text>{said}'
    )


if __name__ == "__main__":
    Path(PICTURE).write_text(draw(), encoding="utf-8")
