"""Seconds per reconstruction step and per run, peak memory and top-1, beside peers; and how cost
grows with depth and calibration images.

    python -m benchmarks.speed --quick     # one network, 100 steps per layer, 2,000 test images
    python -m benchmarks.speed             # 500 steps per layer, both bit widths
    python -m benchmarks.speed --fresh     # measure again what was measured
    python -m benchmarks.speed --tables    # write the page, measure nothing

Writes benchmarks/results/speed.json, the table in docs/speed.md and docs/images/speed-linear.png;
the short form prints its table.
Peers come from PyPI into environments of their own under .modcap/peers (or $MODCAP_HOME).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.cells import Known, Task, arguments, collect, identity
from benchmarks.places import results
from benchmarks.speed import processes, report
from modcap.core.serialization import canonical, digest
from modcap.jobs.job import REVISION
from modcap.recipe import PRESETS

NETWORKS = ["mobilenet_v2_x0_5", "resnet18_narrow"]  # the short form takes the first
BEFORE = "e52b746"  # the parent of "Faster inner loop, activation cache …"
DEPTHS = ["resnet18", "resnet34", "resnet50", "resnet101"]  # the short form leaves out the last
WIDE = ["mobilenet_v2", "resnet18"]
OURS = [("qdrop", 100), ("qdrop", 500), ("adaround", 500)]  # the short form takes the first
STEPS = [100, 500]  # of peers, per layer; the short form takes the first
COUNTS = [256, 512, 1024, 2048]
COMMON: dict[str, Any] = {"batch": 32, "seed": 0, "images": 1024, "method": "qdrop"}
TIMED = {**COMMON, "network": NETWORKS[1], "w_bits": 4, "a_bits": 4, "tests": 0}  # not tested
IDENTITY = ("name",)


def task(name: str, who: str, limit: float, source: str = "", **spec: Any) -> Task:
    """Measures the row ``name``, unless it is known, in a process of ``who`` (``modcap``, as
    committed in ``source``, or a peer)."""
    return partial(_measured, name, who, limit, source, spec)


def _measured(
    name: str, who: str, limit: float, source: str, spec: dict[str, Any], known: Known
) -> list[dict[str, Any]]:
    preset = PRESETS["quick"].digest if source == "HEAD" else ""
    row = {"name": name, "digest": digest(canonical([who, source + preset, spec]))[:16]}
    if known.get(identity(row, IDENTITY)) == row["digest"]:
        return []
    found = processes.run(who, limit, source, **spec)
    if "error" not in found:  # what failed is tried again the next time
        row["revision"] = REVISION
    return [row | found]


def ratio() -> Iterator[Task]:
    """Seconds per step of HEAD and of the revision before, by turns."""
    for network in NETWORKS:
        for turn in range(3):
            for name, source in (("before", BEFORE), ("now", "HEAD")):
                spec = {**TIMED, "network": network, "steps": 100, "images": 256}
                yield task(f"step/{network}/{name}/{turn}", "modcap", 600, source, **spec)


def precisions() -> Iterator[Task]:
    """Seconds per step in float32 and in bfloat16, by turns, on networks of full width."""
    for network in WIDE:
        for turn in range(3):
            for precision in ("float32", "bfloat16"):
                spec = {**TIMED, "torchvision": network, "images": 64, "steps": 5}
                spec |= {"optimiser": {"precision": precision}}
                yield task(f"precision/{network}/{precision}/{turn}", "modcap", 600, "HEAD", **spec)


def memory() -> Iterator[Task]:
    """What a bound on activations in memory costs, and saves."""
    for bound in (None, 0.125):
        spec = {**TIMED, "torchvision": "resnet18", "steps": 5}
        spec |= {"fields": {"activation_memory": bound}}
        name = f"memory/{'all' if bound is None else f'{bound} GiB'}"
        yield task(name, "modcap", 900, "HEAD", **spec)


def runs(quick: bool) -> Iterator[Task]:
    """Whole runs of modcap and of the peers."""
    limit = 150 if quick else 1800
    common = {**COMMON, "tests": 2000 if quick else 10_000}
    for network in NETWORKS[:1] if quick else NETWORKS:
        place = f"run/{network}"
        for w, a in ((4, 4),) if quick else ((4, 4), (2, 4)):
            for method, count in OURS[:1] if quick else OURS:
                spec = {**common, "network": network, "w_bits": w, "a_bits": a}
                spec |= {"method": method, "steps": count}
                name = f"{place}/W{w}A{a}/modcap {method}, {count} steps"
                yield task(name, "modcap", 3600, "HEAD", **spec)
        four = {**common, "network": network, "w_bits": 4, "a_bits": 4, "steps": STEPS[0]}
        for count in STEPS[:1] if quick else STEPS:
            for peer in ("mct", "aimet"):
                name = f"{place}/W4A4/{peer}, {count} steps"
                yield task(name, peer, limit, **four | {"steps": count})
        if not quick:
            name, spec = f"{place}/W4A4/mct, Hessian", four | {"steps": STEPS[-1], "hessian": True}
            yield task(name, "mct", limit / 3, **spec)
        yield task(f"{place}/W4A4/nncf", "nncf", limit, **four)
        yield task(f"{place}/W8A8/nncf", "nncf", limit, **four | {"w_bits": 8, "a_bits": 8})


def linear(quick: bool) -> Iterator[Task]:
    """Cost against depth and against calibration images, at fixed steps per module."""
    for name in DEPTHS[:-1] if quick else DEPTHS:
        deep = {**TIMED, "torchvision": name, "images": 32, "batch": 8, "steps": 5 if quick else 20}
        yield task(f"depth/{name}", "modcap", 900, "HEAD", **deep)
    for count in COUNTS:
        many = {**TIMED, "images": count, "steps": 20 if quick else 100}
        yield task(f"images/{count}", "modcap", 900, "HEAD", **many)


def main() -> None:
    args = arguments(__doc__).parse_args()
    path = results("speed", args.quick)
    tasks: list[Task] = []
    if not args.tables:
        processes.write_inputs(NETWORKS)
        whole = [] if args.quick else [*ratio(), *precisions(), *memory()]
        tasks = [*whole, *linear(args.quick), *runs(args.quick)]
    rows = collect(path, IDENTITY, tasks, 1, args.fresh)
    report.write({row["name"]: row for row in rows}, publish=not args.quick)


if __name__ == "__main__":
    sys.exit(main())
