"""Groups side by side against one after another: accuracy, critical path and work.

    python -m benchmarks.waves            # resumes where it was stopped
    python -m benchmarks.waves --quick    # one network, one seed, few steps

Every shipped checkpoint, W2A4 and W4A4, three seeds, the same steps per group everywhere: 500, and
100 to see what each part gives.
Path and work are processor seconds of the jobs, beside those of `sequential` in the same
process. Writes
benchmarks/results/waves.json, and the table of docs/waves.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cells import Setting, Variant, identity
from benchmarks.pages import publish

RESULTS = Path(__file__).parent / "results/waves.json"
NETWORKS = ("mobilenet_v2_x0_5", "resnet18_narrow", "vgg_tiny", "regnet_tiny")
BITS = (2, 4), (4, 4)
IDENTITY = ("network", "bits", "seed", "iterations", "tests", "schedule")

WAVES: dict[str, Any] = {"schedule": "waves"}
UNTUNED: dict[str, Any] = WAVES | {"tuning": 0}
ONE_BY_ONE: dict[str, Any] = UNTUNED | {"path_share": 0}
JOINED: dict[str, Any] = {"k": 2, "homogeneity": "any"}
NEAREST: dict[str, Any] = {"method": "rtn"}
BRIEF: dict[str, dict[str, Any]] = {  # what each part of a schedule gives
    "sequential": {},
    "rounding to nearest": NEAREST,
    "rounding to nearest, corrected": NEAREST | {"correction": True},
    "sequential, corrected": {"correction": True},
    "all at once": ONE_BY_ONE | {"correction": False},
    "all at once, corrected": ONE_BY_ONE,
    "waves, uncorrected": UNTUNED | {"correction": False},
    "waves, corrected": UNTUNED,
    "waves, path_share 0.4, corrected": UNTUNED | {"path_share": 0.4},
    "k=2": JOINED,
    "k=2, shared prefix": JOINED | {"shared_prefix": True},
    "k=2, waves, corrected": JOINED | UNTUNED,
}
WHOLE: dict[str, dict[str, Any]] = {  # at the steps of the quick preset
    "sequential": {},
    "sequential, tuned": {"tuning": 100},
    "rounding to nearest, corrected, tuned": NEAREST | {"correction": True, "tuning": 100},
    "waves, corrected": UNTUNED,
    "waves": WAVES,
    "waves, path_share 0.1": WAVES | {"path_share": 0.1},
}


@dataclass(frozen=True)
class Batch:
    """Cells of one network, bits and seed; path and work are compared within it."""

    network: str
    bits: tuple[int, int]
    seed: int
    iterations: int = 500
    tests: int = 10_000


def batches(quick: bool) -> list[Batch]:
    """What to measure, the most telling first."""
    if quick:
        return [Batch("resnet18_narrow", (2, 4), 0, 20, 1000)]
    each = [(bits, seed) for bits in BITS for seed in range(3)]
    return [
        Batch(network, bits, seed, iterations)
        for iterations in (500, 100)
        for bits, seed in each
        for network in NETWORKS
    ]


def measure(batch: Batch, known: set[str]) -> list[dict[str, Any]]:
    schedules = BRIEF if batch.iterations == 100 else WHOLE
    steps = {"k": 0, "optimiser": {"iterations": batch.iterations}}
    variants = [
        Variant({"schedule": name}, batch.bits, steps | fields)
        for name, fields in schedules.items()
    ]
    setting = Setting(batch.network, "qdrop", batch.seed, batch.tests)
    return list(setting.rows(variants, known, IDENTITY))


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| network | bits | schedule | top-1 % (min to max, n) | to sequential | final error "
        "| path | work |",
        "|---|---|---|---|---|---|---|---|",
    ]
    cells: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["network"], row["bits"], row["schedule"]), []).append(row)
    order = [*WHOLE, *(name for name in BRIEF if name not in WHOLE)]
    for key in sorted(cells, key=lambda k: (NETWORKS.index(k[0]), k[1], order.index(k[2]))):
        some = cells[key]
        base = {row["seed"]: row for row in cells[(*key[:2], "sequential")]}
        top = [row["top1"] for row in some]
        gain = statistics.mean(row["top1"] - base[row["seed"]]["top1"] for row in some)
        error = statistics.mean(row["final_error"] for row in some)
        path = statistics.mean(r["path_seconds"] / base[r["seed"]]["path_seconds"] for r in some)
        work = statistics.mean(_work(r) / _work(base[r["seed"]]) for r in some)
        lines.append(
            f"| {' | '.join(key)} | {statistics.mean(top):.2f} "
            f"({min(top):.2f} to {max(top):.2f}, {len(top)}) | {gain:+.2f} | {error:.4f} "
            f"| {path:.2f} | {work:.2f} |"
        )
    return lines


def _work(row: dict[str, Any]) -> float:
    return float(row["reconstruct_seconds"] + row.get("finish_seconds", 0))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    path = RESULTS.with_stem("waves_quick") if args.quick else RESULTS
    rows = json.loads(path.read_text()) if path.exists() else []
    known = {identity(row, IDENTITY) for row in rows}
    with ProcessPoolExecutor(args.workers) as pool:
        todo = [pool.submit(measure, batch, known) for batch in batches(args.quick)]
        for batch in as_completed(todo):
            rows += batch.result()
            path.write_text(json.dumps(rows, indent=1) + "\n")
            print(f"{len(rows)} rows", flush=True)
    brief, whole = (
        table([row for row in rows if (row["iterations"] == 100) is short])
        for short in (True, False)
    )
    if not args.quick:
        publish("waves.md", "whole", "\n".join(whole))
        publish("waves.md", "brief", "\n".join(brief))
    print("\n".join(whole))


if __name__ == "__main__":
    main()
