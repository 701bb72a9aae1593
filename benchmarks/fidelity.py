"""Does joining by capacity help? Every selection beside every other, at equal steps.

    python -m benchmarks.fidelity            # resumes where it was stopped
    python -m benchmarks.fidelity --quick    # a small table in under ten minutes

All variants see the same calibration images, images per step and rates. ``group``: each group takes
the same number of steps, so joining does not work more (a step of a joined group costs what its
modules cost alone). ``module``: steps grow with the size of the group, so that all variants take
the same number of steps per module and joined ones work more; not joined at 150 steps, they
work as much. Writes
benchmarks/results/fidelity.json (every cell), and the tables of docs/evidence.md.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.cells import (
    MOBILENET,
    NETWORKS,
    RESNET,
    SOFT,
    Known,
    Setting,
    Variant,
    arguments,
    collect_as_asked,
    steps,
)
from benchmarks.fidelity_report import CAPACITIES, picture, single_picture, tables
from benchmarks.pages import publish
from benchmarks.places import DOCS, results
from modcap.flows.reports import plots
from modcap.ptq.selection import random_k, spans
from modcap.recipe import PRESETS

K = {MOBILENET: 4}  # boundaries to select; 2 in the others, which have half as many modules
QUICK = PRESETS["quick"]
ITERATIONS = QUICK.optimiser.iterations
_TWO = (2, 2), (2, 4)  # bits, where joining does most
LONGER = 150  # about the work of joined groups at equal steps per module
DRAWS = 10  # random choices of boundaries beside the rules
MOST = 4  # boundaries, in accuracy against k with the quick preset
IDENTITY = ("network", "bits", "method", "selection", "per", "seed", "iterations", "tests")

# What the authors' configurations join (github.com/bytedance/MRECG, configs/qdrop): of MobileNetV2
# blocks as mbv2_2_4.yaml counts them, nine boundaries; of ResNet-18 (r18_2_4.yaml) layer1.1 with
# layer2.0 and layer2.1 with layer3.0, which are the children 4 to 7 here
AUTHORS = {
    MOBILENET: [
        ["features.0.0", "features.1.conv"],
        *(
            [f"features.{block}.conv" for block in group]
            for group in ((3, 4), (6, 7), (9, 10, 11), (12, 13, 14), (16, 17))
        ),
        ["features.18.0", "classifier.1"],
    ],
    RESNET: [["4", "5"], ["6", "7"]],
}


def joined(groups: Sequence[Sequence[str]]) -> dict[str, Any]:
    return {"selection": "explicit", "groups": groups, "k": None}


def pairs_everywhere(names: Sequence[str]) -> dict[str, Any]:
    return joined([names[i : i + 2] for i in range(0, len(names) - 1, 2)])


def drawn(number: int, k: int, names: Sequence[str]) -> dict[str, Any]:
    """Groups by the ``number``-th random choice of k boundaries."""
    mask = random_k(k, [True] * (len(names) - 1), number)
    return joined([names[slice(*span)] for span in spans(mask) if span.stop - span.start > 1])


def selections(network: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The recipe fields of each selection."""
    k = K.get(network, 2)
    found = {
        "none": {"k": 0},
        "data-free": {"k": k},
        "data-dependent": {"k": k, "capacity": "data-dependent"},
        "data-free, any neighbours": {"k": k, "homogeneity": "any"},
        "data-free, any, log": {"k": k, "homogeneity": "any", "capacity_scale": "log"},
        "random": {"k": k, "homogeneity": "any", "selection": "random"},
        "pairs everywhere": pairs_everywhere(names),
    }
    if network in AUTHORS:
        found["authors' list"] = joined(AUTHORS[network])
    return found


def series(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Accuracy against k: by the paper's rule, and over any neighbours."""
    found: dict[str, dict[str, Any]] = {f"paper, k={k}": {"k": k} for k in range(1, 10)}
    found |= {
        f"log, k={k}": {"k": k, "homogeneity": "any", "capacity_scale": "log"}
        for k in (1, 2, 3, 6, 9)
    }
    return found


def draws(network: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Groups by chance, as many boundaries as the rules select; 0 is that of ``random``."""
    return {f"draw {n}": drawn(n, K.get(network, 2), names) for n in range(1, DRAWS + 1)}


def with_tuning(network: str, names: Sequence[str], most: int) -> dict[str, dict[str, Any]]:
    """The quick preset as it is, over every k: groups side by side, tuned at the end."""
    k = K.get(network, 2)
    found: dict[str, dict[str, Any]] = {f"quick, k={n}": {"k": n} for n in range(most + 1)}
    found["quick, random"] = {"k": k, "homogeneity": "any", "selection": "random"}
    found["quick, pairs everywhere"] = pairs_everywhere(names)
    if network in AUTHORS:
        found["quick, authors' list"] = joined(AUTHORS[network])
    found["quick, auto"] = {"k": None}
    found["quick, integers fixed"] = {"k": 0, "tuning_rounding_rate": 0}
    return found


def roundings() -> dict[str, dict[str, Any]]:
    """Straight-through rounding without tuning, as the quick preset has it; and soft rounding in
    its place."""
    through = {name: getattr(QUICK.optimiser, name) for name in SOFT}
    return {
        "straight-through": steps(ITERATIONS, optimiser={"iterations": ITERATIONS} | through),
        "quick, k=0": {"k": 0},
        "quick, soft rounding": {"k": 0, "optimiser": SOFT},
    }


@dataclass(frozen=True)
class Batch:
    """Cells of one network, bits, method and seed: they share the prefixes they have in common."""

    network: str
    bits: tuple[int, int]
    method: str
    seed: int
    table: str = "selections"
    iterations: int = ITERATIONS
    tests: int = 10_000


def batches(quick: bool) -> list[Batch]:
    """What to measure, the most telling first."""
    if quick:
        small = {"iterations": 30, "tests": 2000}
        return [Batch(n, (2, 4), "qdrop", 0, **small) for n in ("vgg_tiny", RESNET)]
    bits = ((2, 4), (4, 4), (3, 3), (2, 2))
    found = [Batch(n, (2, 4), "qdrop", 0) for n in NETWORKS]
    found += [
        Batch(n, b, "qdrop", 0, "rounding") for b in ((2, 2), (2, 4), (4, 4)) for n in NETWORKS
    ]
    found.append(Batch(MOBILENET, (2, 4), "qdrop", 0, "k"))
    found += [Batch(n, (2, 4), "qdrop", 0, "quick") for n in NETWORKS]
    found += [Batch(MOBILENET, b, "qdrop", 0) for b in bits[1:]]
    found.append(Batch(MOBILENET, (2, 2), "qdrop", 0, "quick"))
    found += [Batch(MOBILENET, (2, 4), m, 0) for m in ("brecq", "adaround")]
    found += [Batch(n, (2, 4), "qdrop", s) for s in (1, 2) for n in NETWORKS]
    found += [Batch(n, (2, 4), "qdrop", s, "quick") for s in (1, 2) for n in NETWORKS]
    found += [Batch(n, b, "qdrop", 0) for n in NETWORKS[1:] for b in bits[1:]]
    found += [Batch(n, (2, 4), m, 0) for n in NETWORKS[1:] for m in ("brecq", "adaround")]
    found += [Batch(MOBILENET, b, "qdrop", s) for s in (1, 2) for b in bits[1:]]
    # Whether a k helps under tuning is a matter of 0.2 points: it takes more seeds
    found += [Batch(MOBILENET, (2, 4), "qdrop", s, "quick") for s in (3, 4, 5)]
    found += [Batch(MOBILENET, (2, 2), "qdrop", s, "quick") for s in (1, 2)]
    found += [Batch(MOBILENET, b, "qdrop", s, "rounding") for s in (1, 2) for b in _TWO]
    found += [Batch(MOBILENET, b, "qdrop", 0, t) for t in ("single", "draws") for b in _TWO]
    return found


def single(bits: tuple[int, int], setting: Setting) -> Iterator[Variant]:
    """Every boundary joined alone, with what capacity says of it."""
    names = setting.module_names()
    found = {
        kind: setting.selection(Variant({}, bits, {"k": 0, "capacity": kind}))
        for kind in CAPACITIES
    }
    for at, pair in enumerate(itertools.pairwise(names)):
        labels = {
            "selection": f"only {pair[0]}",
            "per": "module",
            "homogeneous": found["data-free"]["allowed"][at],
            **{kind: selection["differentials"][at] for kind, selection in found.items()},
        }
        recipe = steps(ITERATIONS, **joined([pair]), iterations_per="module")
        yield Variant(labels, bits, recipe)


def variants(batch: Batch, setting: Setting) -> Iterator[Variant]:
    network, names = batch.network, setting.module_names()
    if batch.table == "single":
        yield from single(batch.bits, setting)
        return
    if batch.table in ("quick", "rounding"):
        most = min(MOST, setting.homogeneous())
        whole = with_tuning(network, names, most) if batch.table == "quick" else roundings()
        for name, fields in whole.items():
            yield Variant({"selection": name, "per": "group"}, batch.bits, fields)
        return
    if batch.table == "draws":
        every, budgets = draws(network, names), ("module",)
    elif batch.table == "k":
        every, budgets = series(names), ("group",)
    else:
        every, budgets = selections(network, names), ("group", "module")
    for name, fields in every.items():
        for per in budgets if name != "none" else ("group",):
            recipe = steps(batch.iterations, **fields, iterations_per=per)
            yield Variant({"selection": name, "per": per}, batch.bits, recipe)
    if network == MOBILENET and batch.table == "selections":
        recipe = steps(LONGER, k=0, iterations_per="module")
        yield Variant({"selection": f"none, {LONGER} steps", "per": "module"}, batch.bits, recipe)


def measure(batch: Batch, known: Known) -> list[dict[str, Any]]:
    """The cells of a batch that are not in ``known``."""
    setting = Setting.shipped(batch.network, batch.method, batch.seed, batch.tests)
    return list(setting.rows(variants(batch, setting), known, IDENTITY))


def main() -> None:
    args = arguments(__doc__, os.cpu_count() or 1).parse_args()
    path = results("fidelity", args.quick)
    tasks = [partial(measure, batch) for batch in batches(args.quick)]
    rows = collect_as_asked(args, path, IDENTITY, tasks)
    found = tables(rows)
    if not args.quick:
        for mark, lines in found.items():
            publish("evidence.md", mark, "\n".join(lines))
        (DOCS / "images/evidence-selections.png").write_bytes(plots.png(picture(rows)))
        (DOCS / "images/evidence-boundaries.png").write_bytes(plots.png(single_picture(rows)))
    print("\n\n".join("\n".join(lines) for lines in found.values()))


if __name__ == "__main__":
    main()
