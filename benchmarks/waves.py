"""Groups side by side against one after another: accuracy, critical path and work.

    python -m benchmarks.waves            # resumes where it was stopped
    python -m benchmarks.waves --quick    # one network, one seed, few steps

Every shipped checkpoint, W2A4 and W4A4, up to three seeds: 500 steps one group after another beside
100 (or rounding to nearest) with tuning; and, at 100 steps without tuning, what each part gives.
Path and work are processor seconds of the jobs, beside those of `sequential` in the same
process. Writes benchmarks/results/waves.json, and the two tables of docs/waves.md.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.cells import (
    NEAREST,
    NETWORKS,
    Known,
    Setting,
    Variant,
    arguments,
    collect_as_asked,
    grouped,
    revisions,
    seconds,
    short,
    spread,
    steps,
)
from benchmarks.pages import publish
from benchmarks.places import results

BITS = (2, 4), (4, 4)
IDENTITY = ("network", "bits", "seed", "iterations", "tests", "schedule", "table")


WAVES: dict[str, Any] = {"schedule": "waves"}
AT_ONCE: dict[str, Any] = WAVES | {"path_share": 0}
WHOLE: dict[str, dict[str, Any]] = {  # against one after another at 500 steps
    "sequential, 500 steps": steps(500),
    "sequential, 100 steps": steps(100),
    "sequential, 100 steps, tuned 300": steps(100, tuning=300),
    "rounding to nearest, tuned 300": steps(0, tuning=300, **NEAREST),
    "all at once, 100 steps, tuned 100": steps(100, tuning=100, **AT_ONCE),
    "all at once, 100 steps, tuned 300": steps(100, tuning=300, **AT_ONCE),
    "waves, 100 steps, tuned 100": steps(100, tuning=100, **WAVES),
    "waves, 100 steps, tuned 300": steps(100, tuning=300, **WAVES),
}

JOINED: dict[str, Any] = {"k": 2, "homogeneity": "any"}
PARTS: dict[str, dict[str, Any]] = {  # what each part gives, without tuning, at 100 steps
    "sequential": steps(100),
    "rounding to nearest": steps(100, method="rtn"),
    "rounding to nearest, corrected": steps(100, **NEAREST),
    "sequential, corrected": steps(100, correction=True),
    "all at once": steps(100, **AT_ONCE, correction=False),
    "all at once, corrected": steps(100, **AT_ONCE),
    "waves, uncorrected": steps(100, **WAVES, correction=False),
    "waves, corrected": steps(100, **WAVES),
    "waves, path_share 0.4, corrected": steps(100, **WAVES, path_share=0.4),
    "k=2": steps(100, **JOINED),
    "k=2, shared prefix": steps(100, **JOINED, shared_prefix=True),
    "k=2, waves, corrected": steps(100, **JOINED, **WAVES),
}
TABLES = {"whole": WHOLE, "parts": PARTS}


@dataclass(frozen=True)
class Batch:
    """Cells of one network, bits and seed; path and work are compared within it."""

    network: str
    bits: tuple[int, int]
    seed: int
    table: str
    tests: int = 10_000


def batches() -> list[Batch]:
    """What to measure, the most telling first."""
    return [
        Batch(network, bits, seed, table)
        for table in TABLES
        for seed in range(3)
        for bits in BITS
        for network in NETWORKS
    ]


def measure(batch: Batch, quick: bool, known: Known) -> list[dict[str, Any]]:
    variants = [
        Variant(
            {"schedule": name, "table": batch.table},
            batch.bits,
            short(fields) if quick else fields,
        )
        for name, fields in TABLES[batch.table].items()
    ]
    setting = Setting.shipped(batch.network, "qdrop", batch.seed, batch.tests)
    return list(setting.rows(variants, known, IDENTITY))


def table(rows: Sequence[dict[str, Any]], order: Sequence[str]) -> list[str]:
    """Beside the first of ``order``."""
    lines = [
        "| network | bits | schedule | top-1 % (min to max, n) | to the first | final error "
        "| path | work | revision |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    cells = grouped(rows, ("network", "bits", "schedule"))
    for key in sorted(cells, key=lambda k: (NETWORKS.index(k[0]), k[1], order.index(k[2]))):
        some = cells[key]
        base = {row["seed"]: row for row in cells[(*key[:2], order[0])]}
        gain = statistics.mean(row["top1"] - base[row["seed"]]["top1"] for row in some)
        error = statistics.mean(row["final_error"] for row in some)
        path = statistics.mean(r["path_seconds"] / base[r["seed"]]["path_seconds"] for r in some)
        work = ""
        if all("finish_seconds" in row for row in some):
            work = f"{statistics.mean(seconds(r) / seconds(base[r['seed']]) for r in some):.2f}"
        lines.append(
            f"| {' | '.join(key)} | {spread([row['top1'] for row in some])} "
            f"| {gain:+.2f} | {error:.4f} | {path:.2f} | {work} | {revisions(some)} |"
        )
    return lines


def main() -> None:
    args = arguments(__doc__, os.cpu_count() or 1).parse_args()
    path = results("waves", args.quick)
    todo = batches()
    if args.quick:
        todo = [Batch("resnet18_narrow", (2, 4), 0, "whole", 1000)]
    tasks = [partial(measure, batch, args.quick) for batch in todo]
    rows = collect_as_asked(args, path, IDENTITY, tasks)
    tables = {
        name: "\n".join(table([r for r in rows if r["table"] == name], list(variants)))
        for name, variants in TABLES.items()
    }
    if not args.quick:
        for name, text in tables.items():
            publish("waves.md", name, text)
    print(tables["whole"])


if __name__ == "__main__":
    main()
