"""The picture of the code is that of the code."""

from __future__ import annotations

from docs.draw_architecture import PICTURE, draw


def test_the_picture_is_drawn_from_the_imports_of_today() -> None:
    assert PICTURE.read_text(encoding="utf-8") == draw(), "run python -m docs.draw_architecture"
