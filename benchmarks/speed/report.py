"""The table and the plot of docs/speed.md, from the rows of one size."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.pages import publish

__all__ = ["write"]

Row = dict[str, Any]


def write(root: Path, size: str, rows: dict[str, Row]) -> None:
    """Puts table and plot into the docs."""
    some = {key.removeprefix(f"{size}/"): row for key, row in rows.items() if _of(key, size)}
    fits = _plot(some, root / "docs/images/speed-linear.png")
    ratios = (
        _ratios(some, "step", ("before", "now"), "W4A4, QDrop"),
        _ratios(some, "precision", ("float32", "bfloat16"), "W4A4, QDrop, 64 × 64 inputs"),
    )
    parts = [
        f"Size: {size}.",
        *ratios,
        _memory(some),
        _runs(some),
        _installs(some),
        _linear(some),
        fits,
    ]
    text = "\n\n".join(part for part in parts if part)
    publish("speed.md", "table", text)
    print(text)


def _of(key: str, size: str) -> bool:
    return key.startswith((f"{size}/", "install/"))


def _table(head: str, lines: list[str]) -> str:
    return "\n".join([f"| {head} |", "|" + "---|" * (head.count("|") + 1), *lines])


def _ratios(rows: dict[str, Row], kind: str, pair: tuple[str, str], what: str) -> str:
    """Seconds per step of the first and the second of ``pair``, which took turns."""
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
            lines.append(f"| {network} | {1000 * old:.0f} | {1000 * new:.0f} | "
                         f"{old / new:.2f} | {turns} |")  # fmt: skip
    if not lines:
        return ""
    first, second = pair
    head = f"network | {first}, ms | {second}, ms | {first} / {second} | turns"
    return f"One step of every module, summed, {what}:\n\n" + _table(head, lines)


def _memory(rows: dict[str, Row]) -> str:
    lines = [
        f"| {key.split('/')[1]} | {row['cpu_seconds']:.1f} | {row['seconds']:.1f} "
        f"| {row['peak_anonymous_mb']} |"
        for key, row in rows.items()
        if key.startswith("memory/") and "error" not in row
    ]
    if not lines:
        return ""
    head = "activations in memory | CPU seconds | seconds | peak MB outside of files"
    return "ResNet-18 on 1,024 images of 64 × 64:\n\n" + _table(head, lines)


def _runs(rows: dict[str, Row]) -> str:
    lines = []
    for key, row in rows.items():
        if not key.startswith("run/"):
            continue
        _, network, bits, who = key.split("/")
        name = f"{who} {row.get('version', '')}".strip()
        if "error" in row:
            lines.append(f"| {network} | {bits} | {name} | fails: {row['error']} | | | | |")
            continue
        lines.append(
            f"| {network} | {bits} | {name} | {row['seconds']:.1f} | {row['cpu_seconds']:.1f} "
            f"| {row['steps']} | {row['top1']:.2f} | {row['peak_mb']} |"
        )
    head = "network | bits | by | seconds | CPU seconds | steps in all | top-1 % | peak MB"
    return "Whole runs, 1,024 images, 32 a step, one thread, one seed:\n\n" + _table(head, lines)


def _installs(rows: dict[str, Row]) -> str:
    lines = [f"| {k.split('/')[1]} | {r['state']} |" for k, r in rows.items() if "state" in r]
    return _table("peer | install", lines)


def _series(rows: dict[str, Row], kind: str) -> tuple[list[float], list[float], list[float]]:
    found = [(k, r) for k, r in rows.items() if k.startswith(f"{kind}/") and "error" not in r]
    x = [float(r["layers"] if kind == "depth" else k.split("/")[1]) for k, r in found]
    return x, [r["cpu_seconds"] for _, r in found], [r["seconds"] for _, r in found]


def _linear(rows: dict[str, Row]) -> str:
    lines = [
        f"| {key} | {row['layers']} | {row['cpu_seconds']:.1f} | {row['seconds']:.1f} "
        f"| {row['steps']} |"
        for key, row in rows.items()
        if key.startswith(("depth/", "images/")) and "error" not in row
    ]
    return _table("run | weight layers | CPU seconds | seconds | steps in all", lines)


def _r2(x: list[float], y: list[float]) -> float:
    line = np.polyval(np.polyfit(x, y, 1), x)
    return float(1 - np.square(y - line).sum() / np.square(y - np.mean(y)).sum())


def _plot(rows: dict[str, Row], path: Path) -> str:
    """The picture, and R² of the straight lines as a sentence."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    said = []
    names = {"depth": "weight layers", "images": "calibration images"}
    for axis, (kind, label) in zip(axes, names.items(), strict=True):
        x, cpu, wall = _series(rows, kind)
        axis.plot(x, cpu, "o", label="CPU seconds")
        axis.plot(x, wall, "x", color="grey", label="seconds")
        axis.plot(x, np.polyval(np.polyfit(x, cpu, 1), x), "-", label="line through CPU seconds")
        axis.set(xlabel=label, ylabel="s", ylim=(0, None), title=f"R² {_r2(x, cpu):.3f}")
        axis.legend(fontsize=8)
        said.append(f"{label}: {_r2(x, cpu):.3f} on CPU seconds, {_r2(x, wall):.3f} on seconds")
    figure.savefig(path, dpi=110)
    return f"R² of a straight line, {'; '.join(said)}."
