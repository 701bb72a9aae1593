"""The page of docs on breadth: totals, a line for each family, and what fails with its reason."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

SAME, ROUNDED = 1e-4, 2e-2  # relative errors that are within bounds
_LIBRARIES = ("torchvision", "timm")

_HEAD = """# Which networks are captured

Measured by `make bench-breadth` (benchmarks/breadth.py) on networks with random weights, at the
smallest input of 64 to 256 pixels that each takes: every classifier of torchvision, and of timm one
or two of each family, the smallest, without regard to whether they are captured. *Same* is a
forward that is equal to within 1e-4 of its size; *W8A8* an output that stays within 2e-2 of it
when weights and activations are rounded to 8 bits, without any training. *Share* is how much of the
weights the largest module holds.
"""


def page(rows: list[dict[str, Any]], listed: int) -> str:
    """The whole page, of as many of the ``listed`` networks as have a row."""
    some = f"Of {listed} networks listed, {len(rows)} have been measured so far.\n"
    parts = [_HEAD, *([some] if len(rows) < listed else []), _totals(rows)]
    for library in _LIBRARIES:
        own = [row for row in rows if row["network"].startswith(f"{library}:")]
        if own:
            parts += [f"## {library}\n", _families(own)]
    return "\n".join([*parts, "## What fails, and why\n", _failures(rows), _doubts(rows)])


def _share(rows: list[dict[str, Any]], which: str, bound: float) -> str:
    good = sum(row[which] <= bound for row in rows)
    return f"{good} of {len(rows)}"


def _totals(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| | networks | captured | same | W8A8 | largest module's share, median |",
        "|---|---|---|---|---|---|",
    ]
    for library in _LIBRARIES:
        own = [row for row in rows if row["network"].startswith(f"{library}:")]
        good = [row for row in own if row["captured"]]
        if good:
            lines.append(
                f"| {library} | {len(own)} | {len(good)} ({len(good) / len(own):.1%}) "
                f"| {_share(good, 'error', SAME)} | {_share(good, 'w8a8', ROUNDED)} "
                f"| {statistics.median(row['share'] for row in good):.2f} |"
            )
    return "\n".join(lines) + "\n"


def _families(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| family | network | modules | share | forward | W8A8 |",
        "|---|---|---|---|---|---|",
    ]
    families: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        families[row["family"]].append(row)
    for family, members in sorted(families.items()):
        for row in members:
            name = row["network"].partition(":")[2]
            if row["captured"]:
                said = f"{row['modules']} | {row['share']:.2f} | {row['error']:.0e} "
                lines.append(f"| {family} | {name} | {said}| {row['w8a8']:.1e} |")
            else:
                lines.append(f"| {family} | {name} | no | | | |")
    return "\n".join(lines) + "\n"


def _failures(rows: list[dict[str, Any]]) -> str:
    failed = [row for row in rows if not row["captured"]]
    return "".join(f"- `{row['network']}`: {row['why']}\n" for row in failed) or "Nothing.\n"


def _doubts(rows: list[dict[str, Any]]) -> str:
    good = [row for row in rows if row["captured"]]
    other = [row for row in good if row["error"] > SAME]
    rough = [row for row in good if row["w8a8"] > ROUNDED]
    text = "\n## Captured, but beyond a bound\n\n"
    text += "".join(f"- `{r['network']}`: forward {r['error']:.1e}\n" for r in other)
    return text + "".join(f"- `{r['network']}`: W8A8 {r['w8a8']:.1e}\n" for r in rough)
