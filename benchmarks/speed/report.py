"""The tables and the plot of docs/speed.md, from rows."""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import pages
from benchmarks.cells import revisions
from benchmarks.places import DOCS

__all__ = ["write"]

Row = dict[str, Any]


def write(rows: dict[str, Row], publish: bool) -> None:
    """Prints the tables; puts them and the plot into the docs if told to."""
    ratios = (
        _ratios(rows, "step", ("before", "now"), "W4A4, QDrop"),
        _ratios(rows, "precision", ("float32", "bfloat16"), "W4A4, QDrop, 64 × 64 inputs"),
    )
    tables = *ratios, _memory(rows), _runs(rows), _linear(rows), _fits(rows)
    text = "\n\n".join(table for table in tables if table)
    print(text)
    if publish:
        pages.publish("speed.md", "table", text)
        _plot(rows).savefig(DOCS / "images/speed-linear.png", dpi=110)


def _table(head: str, lines: list[str]) -> str:
    return "\n".join([f"| {head} |", "|" + "---|" * (head.count("|") + 1), *lines])


def _ratios(rows: dict[str, Row], kind: str, pair: tuple[str, str], what: str) -> str:
    """Seconds per step of the first and the second of ``pair``, which took turns."""
    first, second = pair
    lines = []
    for network in sorted({key.split("/")[1] for key in rows if key.startswith(f"{kind}/")}):
        sums = [
            [r["seconds_per_step_sum"] for k, r in rows.items()
             if k.startswith(f"{kind}/{network}/{name}/") and "error" not in r]
            for name in pair
        ]  # fmt: skip
        if all(sums):
            old, new = map(median, sums)
            turns = len(sums[1])
            of = revisions(
                rows[key] for key in rows if key.startswith(f"{kind}/{network}/{second}/")
            )
            lines.append(f"| {network} | {1000 * old:.0f} | {1000 * new:.0f} | "
                         f"{old / new:.2f} | {turns} | {of} |")  # fmt: skip
    if not lines:
        return ""
    head = f"network | {first}, ms | {second}, ms | {first} / {second} | turns | revision"
    return f"One step of every module, summed, {what}:\n\n" + _table(head, lines)


def _memory(rows: dict[str, Row]) -> str:
    lines = [
        f"| {key.split('/')[1]} | {row['cpu_seconds']:.1f} | {row['seconds']:.1f} "
        f"| {row['peak_anonymous_mb'] or 'not known'} | {revisions([row])} |"
        for key, row in rows.items()
        if key.startswith("memory/") and "error" not in row
    ]
    if not lines:
        return ""
    head = "activations in memory | CPU seconds | seconds | peak MB outside of files | revision"
    return "ResNet-18 on 1,024 images of 64 × 64:\n\n" + _table(head, lines)


def _runs(rows: dict[str, Row]) -> str:
    lines = []
    found = [key.split("/") for key in rows if key.startswith("run/")]
    for _, network, bits, who in sorted(found, key=lambda key: key[1:3]):
        row = rows[f"run/{network}/{bits}/{who}"]
        tool, *details = who.split(",")
        name = ",".join([f"{tool} {row.get('version', '')}".strip(), *details])
        if "error" in row:
            lines.append(f"| {network} | {bits} | {name} | fails: {row['error']} | | | | | |")
            continue
        lines.append(
            f"| {network} | {bits} | {name} | {row['seconds']:.1f} | {row['cpu_seconds']:.1f} "
            f"| {row['steps']} | {row['top1']:.2f} | {row['peak_mb']} | {revisions([row])} |"
        )
    head = "network | bits | by | seconds | CPU seconds | steps in all | top-1 % | peak MB"
    head += " | revision"
    tests = sorted({f"{row['tests']:,}" for row in rows.values() if row.get("tests")})
    what = f"1,024 images, 32 a step, {' or '.join(tests)} test images, one thread, one seed"
    return f"Whole runs, {what}:\n\n" + _table(head, lines)


def _series(rows: dict[str, Row], kind: str) -> tuple[list[float], list[float], list[float]]:
    found = [(k, r) for k, r in rows.items() if k.startswith(f"{kind}/") and "error" not in r]
    x = [float(r["layers"] if kind == "depth" else k.split("/")[1]) for k, r in found]
    return x, [r["cpu_seconds"] for _, r in found], [r["seconds"] for _, r in found]


def _linear(rows: dict[str, Row]) -> str:
    lines = [
        f"| {key} | {row['layers']} | {row['cpu_seconds']:.1f} | {row['seconds']:.1f} "
        f"| {row['steps']} | {revisions([row])} |"
        for key, row in rows.items()
        if key.startswith(("depth/", "images/")) and "error" not in row
    ]
    return _table("run | weight layers | CPU seconds | seconds | steps in all | revision", lines)


def _r2(x: list[float], y: list[float]) -> float:
    line = np.polyval(np.polyfit(x, y, 1), x)
    return float(1 - np.square(y - line).sum() / np.square(y - np.mean(y)).sum())


_SERIES = {"depth": "weight layers", "images": "calibration images"}


def _fits(rows: dict[str, Row]) -> str:
    said = []
    for kind, label in _SERIES.items():
        x, cpu, wall = _series(rows, kind)
        if len(x) < 3:
            continue
        said.append(f"{label}: {_r2(x, cpu):.3f} on CPU seconds, {_r2(x, wall):.3f} on seconds")
    return f"R² of a straight line, {'; '.join(said)}." if said else ""


def _plot(rows: dict[str, Row]) -> Figure:
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axis, (kind, label) in zip(figure.subplots(1, 2), _SERIES.items(), strict=True):
        x, cpu, wall = _series(rows, kind)
        if len(x) < 3:
            continue
        axis.plot(x, cpu, "o", label="CPU seconds")
        axis.plot(x, wall, "x", color="grey", label="seconds")
        axis.plot(x, np.polyval(np.polyfit(x, cpu, 1), x), "-", label="line through CPU seconds")
        axis.set(xlabel=label, ylabel="s", ylim=(0, None), title=f"R² {_r2(x, cpu):.3f}")
        axis.legend(fontsize=8)
    return figure
