"""Puts what a benchmark found into a page of the docs, between two marks."""

from __future__ import annotations

import re

from benchmarks.places import DOCS


def publish(page: str, mark: str, text: str) -> None:
    """Replaces what stands between ``<!-- mark -->`` and ``<!-- end -->`` in docs/``page``."""
    path = DOCS / page
    pattern = rf"(<!-- {re.escape(mark)} -->\n)(?:.*?\n)??(<!-- end -->)"
    found, count = re.subn(
        pattern, lambda m: f"{m[1]}{text}\n{m[2]}", path.read_text(), count=1, flags=re.DOTALL
    )
    assert count, f"docs/{page} has no mark {mark!r}"
    path.write_text(found)
