"""Time to the accuracy of the published recipe: processor seconds of cheaper ones beside it.

    python -m benchmarks.time_to_accuracy            # resumes where it was stopped; hours
    python -m benchmarks.time_to_accuracy --quick    # one small network, 400 steps as the reference

The reference is the ``paper`` preset, with the published regulariser: 20,000 steps per group, one
after another. Beside it the ``quick`` preset and others with fewer steps, or none but tuning, all
on the same images, one seed. A recipe that comes within 0.2 points of the reference has reached it.
Writes benchmarks/results/time_to_accuracy.json, and the table and the picture of docs/speed.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.cells import (
    NEAREST,
    SOFT,
    Known,
    Setting,
    Variant,
    arguments,
    collect_as_asked,
    revisions,
    seconds,
    short,
    steps,
)
from benchmarks.pages import publish
from benchmarks.places import DOCS, results
from modcap.flows.reports import plots

NETWORKS = ("mobilenet_v2_x0_5", "resnet18_narrow", "vgg_tiny")
IDENTITY = ("network", "bits", "seed", "iterations", "tests", "recipe")
REFERENCE = "paper"
REGULARISER = {"mobilenet_v2_x0_5": 0.1}  # as published; 0.01 in other networks
ENOUGH = 0.2  # points below the reference


# "tuned" keeps the integers; quick and what is "integers too" lets them learn
RECIPES: dict[str, dict[str, Any]] = {
    "rounding to nearest, corrected, tuned 100": steps(0, tuning=100, **NEAREST),
    "rounding to nearest, corrected, tuned 300": steps(0, tuning=300, **NEAREST),
    "rounding to nearest, corrected, tuned 1000": steps(0, tuning=1000, **NEAREST),
    "layer-wise, corrected": steps(0, rounding_start="layer-wise", **NEAREST),
    "layer-wise, corrected, tuned 300, integers too": steps(
        0, rounding_start="layer-wise", tuning=300, tuning_rounding_rate=2e-3, **NEAREST
    ),
    "sequential, 100 steps": steps(100),
    "sequential, 100 steps, tuned 100": steps(100, tuning=100),
    "sequential, 100 steps, tuned 300": steps(100, tuning=300),
    "sequential, 100 steps, corrected, tuned 600": steps(100, tuning=600, correction=True),
    "sequential, 500 steps": steps(500),
    "sequential, 500 steps, tuned 100": steps(500, tuning=100),
    "waves, 100 steps, tuned 100": steps(100, schedule="waves", tuning=100),
    "waves, 100 steps, tuned 300": steps(100, schedule="waves", tuning=300),
    "waves, 100 steps, tuned 600": steps(100, schedule="waves", tuning=600),
    "waves, 500 steps, tuned 600": steps(500, schedule="waves", tuning=600),
    "waves, 300 steps, tuned 300": steps(300, schedule="waves", tuning=300),
    "waves, 500 steps, tuned 300": steps(500, schedule="waves", tuning=300),
    "waves, 500 steps, tuned 100": steps(500, schedule="waves", tuning=100),
    "rounding to nearest, corrected, tuned 1000, integers too": steps(
        0, tuning=1000, tuning_rounding_rate=2e-3, **NEAREST
    ),
    "quick": {"k": 0},
    "quick, from layer-wise at low rates": {
        "k": 0,
        "rounding_start": "layer-wise",
        "optimiser": {
            "rounding": {"name": "straight-through", "rate": 1e-2},
            "weight_scale_rate": 1e-4,
            "bias_rate": 1e-4,
            "scale_rate": 1e-2,
        },
    },
    "quick, soft rounding": {"k": 0, "optimiser": SOFT},
    "quick, tuned 600": {"k": 0, "tuning": 600},
    "quick, 300 steps": {"k": 0, "optimiser": {"iterations": 300}},
}


def measure(network: str, reference: bool, quick: bool, known: Known) -> list[dict[str, Any]]:
    """The rows of a network that are not known: the reference, or all others."""
    setting = Setting.shipped(network, "qdrop", 0, 1000 if quick else 10_000)
    if reference:
        regulariser = {"regulariser": REGULARISER.get(network, 0.01)}
        fields = steps(400) if quick else {"k": 0, "optimiser": regulariser}
        variants = [Variant({"recipe": REFERENCE}, (2, 4), fields, REFERENCE)]
    else:
        variants = [
            Variant({"recipe": name}, (2, 4), short(fields) if quick else fields)
            for name, fields in RECIPES.items()
            if not quick or "500" not in name
        ]
    return list(setting.rows(variants, known, IDENTITY))


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| network | recipe | top-1 % | to the reference | processor s | of the reference "
        "| reached | revision |",
        "|---|---|---|---|---|---|---|---|",
    ]
    order = [*RECIPES, REFERENCE]
    for network in NETWORKS:
        own = {row["recipe"]: row for row in rows if row["network"] == network}
        base = own.get(REFERENCE)
        for name in (name for name in order if name in own):
            row = own[name]
            if base:
                gain, share = row["top1"] - base["top1"], seconds(row) / seconds(base)
                reached = "yes" if gain >= -ENOUGH else "no"
                beside = f"| {gain:+.2f} | {seconds(row):.0f} | 1/{1 / share:.0f} | {reached} |"
            else:
                beside = f"| | {seconds(row):.0f} | | |"
            top1, of = f"{row['top1']:.2f}", revisions([row])
            lines.append(f"| {network} | {name} | {top1} {beside} {of} |")
    return lines


def picture(rows: Sequence[dict[str, Any]]) -> Figure:
    """Top-1 against processor seconds; what lies above the line has reached the reference."""
    networks = [n for n in NETWORKS if any(row["network"] == n for row in rows)]
    figure = Figure(figsize=(3.3 * len(networks), 3.4), layout="constrained")
    kinds = {
        "rounding to nearest, tuned": ("#999999", "^"),
        "one after another": ("#0072B2", "o"),
        "side by side, integers fixed": ("#56B4E9", "s"),
        "quick, or with more steps": ("#D55E00", "D"),
        "paper": ("#000000", "*"),
    }
    panels = figure.subplots(1, len(networks), squeeze=False)[0]
    for panel, network in zip(panels, networks, strict=True):
        for row in (row for row in rows if row["network"] == network):
            colour, mark = kinds[_kind(row["recipe"])]
            large = row["recipe"] in ("quick", REFERENCE)
            panel.plot(seconds(row), row["top1"], mark, color=colour, ms=9 if large else 5)
            if row["recipe"] == REFERENCE:
                panel.axhline(row["top1"] - ENOUGH, color="#999999", lw=0.8, zorder=0)
        panel.set_xscale("log")
        panel.set_xlim(8, 6000)
        panel.set_title(network, fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("top-1, %")
    figure.supxlabel("processor seconds", fontsize=9)
    handles = [
        Line2D([], [], color=c, marker=m, ls="", label=name) for name, (c, m) in kinds.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return figure


def _kind(recipe: str) -> str:
    if recipe.startswith("quick"):
        return "quick, or with more steps"
    if recipe.startswith("rounding"):
        return "rounding to nearest, tuned"
    if recipe.startswith("waves"):
        return "side by side, integers fixed"
    return recipe if recipe == REFERENCE else "one after another"


def main() -> None:
    parser = arguments(__doc__, 1)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=NETWORKS)
    args = parser.parse_args()
    path = results("time_to_accuracy", args.quick)
    networks = ("vgg_tiny",) if args.quick else args.networks
    tasks = [partial(measure, n, ref, args.quick) for n in networks for ref in (False, True)]
    rows = collect_as_asked(args, path, IDENTITY, tasks)
    if not args.quick:
        publish("speed.md", "time to accuracy", "\n".join(table(rows)))
        (DOCS / "images/time-to-accuracy.png").write_bytes(plots.png(picture(rows)))
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
