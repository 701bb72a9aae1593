"""Mixed precision against uniform bits of weights, at equal bytes of the artifact.

    python -m benchmarks.mixed            # hours on one core; resumes where it was stopped
    python -m benchmarks.mixed --quick    # two networks, one seed, 1,000 test images, few steps

Bits of each layer are chosen by measured sensitivity, by parameter counts and at random (by seed),
with no more bytes than uniform bits take: 3 and 4, the first and the last layer at 8; for 2.5,
halfway from 2 to 3, where top-1 is interpolated, too. Activations have 4 bits. By plain rounding
with corrected channels, and by the quick preset without joins. Writes benchmarks/results/mixed.json
and the table of docs/bits.md.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.cells import (
    MOBILENET,
    NEAREST,
    NETWORKS,
    Known,
    Setting,
    Task,
    Variant,
    collect_and_publish,
    short,
)
from modcap.export.artifact_size import artifact_bytes
from modcap.recipe import Recipe

AVERAGES = (2.5, 3, 4)
UNIFORM = (2, 3, 4)
CHOICES = ("sensitivity", "parameters", "random")
METHODS: dict[str, dict[str, Any]] = {"rtn": {**NEAREST, "k": 0, "tuning": 0}, "qdrop": {"k": 0}}
SEEDS = (0, 1, 2)
A_BITS = 4
IDENTITY = ("network", "average", "choice", "method", "seed", "iterations", "tests")


def variants(setting: Setting, quick: bool) -> Iterator[Variant]:
    """Uniform bits, and every choice at each average."""
    fields = METHODS[setting.method]
    fields = short(fields) if quick else fields
    for w_bits in UNIFORM:
        yield Variant({"average": w_bits, "choice": "uniform"}, (w_bits, A_BITS), fields)
    sizes = {w_bits: _bytes(setting, w_bits) for w_bits in UNIFORM}
    for average in AVERAGES:
        low, high = int(average), -int(-average // 1)
        most = (sizes[low] + sizes[high]) // 2
        for choice in CHOICES:
            auto = {"w_bits": "auto", "max_bytes": most, "allocation": choice}
            labels = {"average": average, "choice": choice}
            yield Variant(labels, (low, A_BITS), fields | auto)


def _bytes(setting: Setting, w_bits: int) -> int:
    bits = Recipe(w_bits=w_bits, a_bits=A_BITS).bit_policy.resolve(setting.network)
    return artifact_bytes(setting.network, bits)


def measure(
    network: str, method: str, seed: int, quick: bool, known: Known
) -> list[dict[str, Any]]:
    setting = Setting.shipped(network, method, seed, 1000 if quick else 10_000)
    return list(setting.rows(variants(setting, quick), known, IDENTITY))


def tasks(quick: bool) -> list[Task]:
    """One for each network, method and seed, whose cells share sensitivities."""
    networks = (MOBILENET, "vgg_tiny") if quick else NETWORKS
    return [
        partial(measure, network, method, seed, quick)
        for seed in (SEEDS[:1] if quick else SEEDS)
        for method in METHODS
        for network in networks
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Top-1 of uniform bits, and by how much each choice differs from it at equal bytes: the mean
    over seeds, and the least and the most."""
    lines = [
        "| network | method | bits | bytes | full precision | uniform | "
        + " | ".join(f"by {choice}" if choice != "random" else choice for choice in CHOICES)
        + " |",
        "|---|---|---:|---:|---:|---:|" + "---:|" * len(CHOICES),
    ]
    for network in NETWORKS:
        for method in METHODS:
            own = [r for r in rows if (r["network"], r["method"]) == (network, method)]
            lines += [_line(network, method, average, own) for average in AVERAGES if own]
    return "\n".join(lines)


def _line(network: str, method: str, average: float, rows: Sequence[dict[str, Any]]) -> str:
    top1 = {(row["average"], row["choice"], row["seed"]): row["top1"] for row in rows}
    sizes = {row["average"]: row["bytes"] for row in rows if row["choice"] == "uniform"}
    ends = int(average), -int(-average // 1)
    seeds = sorted({row["seed"] for row in rows})
    uniform = {
        seed: statistics.fmean(top1[end, "uniform", seed] for end in ends)
        for seed in seeds
        if all((end, "uniform", seed) in top1 for end in ends)
    }
    if not uniform:
        return f"| {network} | {method} | {average:g} | | | | | | |"
    gains = [
        [top1[average, choice, s] - uniform[s] for s in uniform if (average, choice, s) in top1]
        for choice in CHOICES
    ]
    size = sum(sizes[end] for end in ends) // 2
    cells = (f"{network} | {method} | {average:g} | {size:,} | {rows[0]['fp_top1']:.2f}",)
    said = (*cells, f"{statistics.fmean(uniform.values()):.2f}", *map(_spread, gains))
    return f"| {' | '.join(said)} |"


def _spread(gains: Sequence[float]) -> str:
    if not gains:
        return ""
    mean = f"{statistics.fmean(gains):+.2f}"
    return mean if len(gains) == 1 else f"{mean} ({min(gains):+.2f} to {max(gains):+.2f})"


if __name__ == "__main__":
    collect_and_publish(__doc__, "mixed", IDENTITY, tasks, table, "bits.md", "mixed precision")
