"""Seconds per reconstruction step and per run, peak memory and top-1, beside peers; and how cost
grows with depth and calibration images.

    python -m benchmarks.speed --quick     # one network, 100 steps per layer, 2,000 test images
    python -m benchmarks.speed             # 500 steps per layer, both bit widths
    python -m benchmarks.speed --fresh     # measure again what was measured

Writes benchmarks/results/speed.json, the table in docs/speed.md and docs/images/speed-linear.png;
the short form prints its table.
Peers come from PyPI into environments of their own under .modcap/peers (or $MODCAP_HOME).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.speed import processes, report
from benchmarks.speed.store import Rows

ROOT = Path(__file__).parents[2]
NETWORKS = ["mobilenet_v2_x0_5", "resnet18_narrow"]  # the short form takes the first
BEFORE = "e52b746"  # the parent of "Faster inner loop, activation cache …"
DEPTHS = ["resnet18", "resnet34", "resnet50", "resnet101"]  # the short form leaves out the last
WIDE = ["mobilenet_v2", "resnet18"]
OURS = [("qdrop", 100), ("qdrop", 500), ("adaround", 500)]  # the short form takes the first
COUNTS = [256, 512, 1024, 2048]
COMMON: dict[str, Any] = {"batch": 32, "seed": 0, "images": 1024, "method": "qdrop"}
TIMED = {**COMMON, "network": NETWORKS[1], "w_bits": 4, "a_bits": 4, "tests": 0}  # not tested


def ratio(rows: Rows) -> None:
    """Seconds per step of HEAD and of the revision before, by turns."""
    for network in NETWORKS:
        for turn in range(3):
            for name, source in (("before", BEFORE), ("now", "HEAD")):
                spec = {**TIMED, "network": network, "steps": 100, "images": 256}
                place = processes.revision(source)
                key = f"step/{network}/{name}/{turn}"
                rows.once(key, lambda p=place, s=spec: processes.run("modcap", 600, p, **s))


def precisions(rows: Rows) -> None:
    """Seconds per step in float32 and in bfloat16, by turns, on networks of full width."""
    source = processes.revision("HEAD")
    for network in WIDE:
        for turn in range(3):
            for precision in ("float32", "bfloat16"):
                spec = {**TIMED, "torchvision": network, "images": 64, "steps": 5}
                spec |= {"optimiser": {"precision": precision}}
                key = f"precision/{network}/{precision}/{turn}"
                rows.once(key, lambda s=spec: processes.run("modcap", 600, source, **s))


def memory(rows: Rows) -> None:
    """What a bound on activations in memory costs, and saves."""
    source = processes.revision("HEAD")
    for bound in (None, 0.125):
        spec = {**TIMED, "torchvision": "resnet18", "steps": 5}
        spec |= {"fields": {"activation_memory": bound}}
        key = f"memory/{'all' if bound is None else f'{bound} GiB'}"
        rows.once(key, lambda s=spec: processes.run("modcap", 900, source, **s))


def runs(rows: Rows, quick: bool, steps: int, limit: float) -> None:
    """Whole runs of modcap and of the peers."""
    source = processes.revision("HEAD")
    common = {**COMMON, "tests": 2000 if quick else 10_000}
    for network in NETWORKS[:1] if quick else NETWORKS:
        for bits in ((4, 4),) if quick else ((4, 4), (2, 4)):
            spec = {**common, "network": network, "w_bits": bits[0], "a_bits": bits[1]}
            for method, count in OURS[:1] if quick else OURS:
                key = f"run/{network}/W{bits[0]}A{bits[1]}/modcap {method}, {count} steps"
                own = {**spec, "method": method, "steps": count}
                rows.once(key, lambda s=own: processes.run("modcap", 3600, source, **s))
        for peer in processes.PEERS:
            state = rows.once(f"install/{peer}", lambda p=peer: {"state": processes.install(p)})
            spec = {**common, "network": network, "w_bits": 4, "a_bits": 4, "steps": steps}
            if state["state"] != "works":
                continue
            key = f"run/{network}/W4A4/{peer}"
            row = rows.once(key, lambda p=peer, s=spec: processes.run(p, limit, **s))
            if peer == "nncf" and "error" in row:
                eight = {**spec, "w_bits": 8, "a_bits": 8}
                key = f"run/{network}/W8A8/{peer}"
                rows.once(key, lambda p=peer, s=eight: processes.run(p, limit, **s))
            if peer == "mct" and not quick:
                key, own = f"run/{network}/W4A4/mct, Hessian", {**spec, "hessian": True}
                rows.once(key, lambda s=own: processes.run("mct", limit / 3, **s))


def linear(rows: Rows, quick: bool) -> None:
    """Cost against depth and against calibration images, at fixed steps per module."""
    source = processes.revision("HEAD")
    for name in DEPTHS[:-1] if quick else DEPTHS:
        deep = {**TIMED, "torchvision": name, "images": 32, "batch": 8, "steps": 5 if quick else 20}
        key = f"depth/{name}"
        rows.once(key, lambda s=deep: processes.run("modcap", 900, source, **s))
    for count in COUNTS:
        many = {**TIMED, "images": count, "steps": 20 if quick else 100}
        key = f"images/{count}"
        rows.once(key, lambda s=many: processes.run("modcap", 900, source, **s))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args()
    rows = Rows(ROOT / f"benchmarks/results/speed{'_quick' if args.quick else ''}.json", args.fresh)
    processes.write_inputs(NETWORKS)
    if not args.quick:
        ratio(rows)
        precisions(rows)
        memory(rows)
    linear(rows, args.quick)
    runs(rows, args.quick, 100 if args.quick else 500, 150 if args.quick else 1800)
    report.write(ROOT, rows.rows, publish=not args.quick)


if __name__ == "__main__":
    sys.exit(main())
