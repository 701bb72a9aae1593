"""What a device that computes in integers alone costs in accuracy, each demand by itself and all.

    python -m benchmarks.integer_cost            # resumes where it was stopped
    python -m benchmarks.integer_cost --quick    # two networks, 1,000 test images, few steps

The quick preset without joins (k 0), on the shipped checkpoints. Writes
benchmarks/results/integer_cost.json and the table of docs/export.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.cells import (
    MOBILENET,
    RESNET,
    Known,
    Setting,
    Task,
    Variant,
    collect_and_publish,
    short,
)

OPTIONS: dict[str, dict[str, Any]] = {
    "as usual": {},
    "activations: all": {"activations": "all"},
    "weights: symmetric": {"weights": "symmetric"},
    "scales: power-of-two": {"scales": "power-of-two"},
    "all three": {"activations": "all", "weights": "symmetric", "scales": "power-of-two"},
}
WIDTHS = ((8, 8), (4, 8), (4, 4))
NETWORKS = ("vgg_tiny", RESNET, "regnet_tiny", MOBILENET)
IDENTITY = ("network", "bits", "option", "seed", "iterations", "tests")


def measure(
    network: str, bits: tuple[int, int], option: str, quick: bool, known: Known
) -> list[dict[str, Any]]:
    fields = {"k": 0, **OPTIONS[option]}
    variant = Variant({"option": option}, bits, short(fields) if quick else fields)
    setting = Setting.shipped(network, "qdrop", 0, 1000 if quick else 10_000)
    return list(setting.rows([variant], known, IDENTITY))


def tasks(quick: bool) -> list[Task]:
    """One for each row, so that each is written as it is measured."""
    networks = NETWORKS[:2] if quick else NETWORKS
    return [
        partial(measure, network, bits, option, quick)
        for network in networks
        for bits in WIDTHS
        for option in OPTIONS
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Top-1 as usual, and by how much each option changes it."""
    top1 = {(r["network"], r["bits"], r["option"]): r["top1"] for r in rows}
    full = {r["network"]: r["fp_top1"] for r in rows}
    usual, *others = OPTIONS
    lines = [
        f"| network | bits | full precision | {usual} | {' | '.join(f'`{o}`' for o in others)} |",
        f"|---|---|{'---:|' * (2 + len(others))}",
    ]
    for network in NETWORKS:
        for w, a in WIDTHS:
            here = {option: top1.get((network, f"W{w}A{a}", option)) for option in OPTIONS}
            if not any(here.values()):
                continue
            cells = [_difference(here[option], here[usual]) for option in others]
            first = "" if here[usual] is None else f"{here[usual]:.2f}"
            lines.append(
                f"| {network} | W{w}A{a} | {full[network]:.2f} | {first} | {' | '.join(cells)} |"
            )
    return "\n".join(lines)


def _difference(found: float | None, usual: float | None) -> str:
    return "" if found is None or usual is None else f"{found - usual:+.2f}"


if __name__ == "__main__":
    collect_and_publish(
        __doc__, "integer_cost", IDENTITY, tasks, table, "export.md", "integer cost"
    )
