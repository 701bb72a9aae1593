"""Groups side by side against one after another: accuracy, critical path and work.

    python -m benchmarks.waves            # resumes where it was stopped
    python -m benchmarks.waves --quick    # one network, one seed, few steps

Every shipped checkpoint, W2A4 and W4A4, three seeds, the same steps per group everywhere; k = 0,
and k = 2 of any neighbours.
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
from pathlib import Path
from typing import Any

from benchmarks.cells import Setting, Variant, identity
from benchmarks.pages import publish

RESULTS = Path(__file__).parent / "results/waves.json"
NETWORKS = ("mobilenet_v2_x0_5", "resnet18_narrow", "vgg_tiny", "regnet_tiny")
BITS = (2, 4), (4, 4)
IDENTITY = ("network", "bits", "seed", "iterations", "tests", "schedule")

ONE_BY_ONE: dict[str, Any] = {"schedule": "waves", "path_share": 0}
JOINED: dict[str, Any] = {"k": 2, "homogeneity": "any"}
SCHEDULES: dict[str, dict[str, Any]] = {
    "sequential": {},
    "rounding to nearest": {"method": "rtn"},
    "rounding to nearest, corrected": {"method": "rtn", "correction": True},
    "sequential, corrected": {"correction": True},
    "all at once": ONE_BY_ONE | {"correction": False},
    "all at once, corrected": ONE_BY_ONE,
    "waves, uncorrected": {"schedule": "waves", "correction": False},
    "waves": {"schedule": "waves"},
    "waves, path_share 0.4": {"schedule": "waves", "path_share": 0.4},
    "k=2": JOINED,
    "k=2, shared prefix": JOINED | {"shared_prefix": True},
    "k=2, waves": JOINED | {"schedule": "waves"},
}


def measure(
    network: str, seed: int, iterations: int, tests: int, known: set[str]
) -> list[dict[str, Any]]:
    setting = Setting(network, "qdrop", seed, tests)
    steps = {"k": 0, "optimiser": {"iterations": iterations}}
    variants = [
        Variant({"schedule": name}, bits, steps | fields)
        for bits in BITS
        for name, fields in SCHEDULES.items()
    ]
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
    order = list(SCHEDULES)
    for key in sorted(cells, key=lambda k: (NETWORKS.index(k[0]), k[1], order.index(k[2]))):
        some = cells[key]
        base = {row["seed"]: row for row in cells[(*key[:2], "sequential")]}
        top = [row["top1"] for row in some]
        gain = statistics.mean(row["top1"] - base[row["seed"]]["top1"] for row in some)
        error = statistics.mean(row["final_error"] for row in some)
        path, work = (
            statistics.mean(row[n] / base[row["seed"]][n] for row in some)
            for n in ("path_seconds", "reconstruct_seconds")
        )
        lines.append(
            f"| {' | '.join(key)} | {statistics.mean(top):.2f} "
            f"({min(top):.2f} to {max(top):.2f}, {len(top)}) | {gain:+.2f} | {error:.4f} "
            f"| {path:.2f} | {work:.2f} |"
        )
    return lines


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
    steps, tests = (20, 1000) if args.quick else (100, 10_000)
    todo = [(n, s) for s in range(3) for n in NETWORKS]
    with ProcessPoolExecutor(args.workers) as pool:
        batches = [
            pool.submit(measure, network, seed, steps, tests, known)
            for network, seed in (todo[1:2] if args.quick else todo)
        ]
        for batch in as_completed(batches):
            rows += batch.result()
            path.write_text(json.dumps(rows, indent=1) + "\n")
            print(f"{len(rows)} rows", flush=True)
    if not args.quick:
        publish("waves.md", "table", "\n".join(table(rows)))
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
