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

import argparse
import itertools
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from benchmarks.cells import (
    Known,
    Setting,
    Variant,
    collect,
    forget,
    grouped,
    revisions,
    seconds,
    spread,
    steps,
)
from benchmarks.pages import publish
from benchmarks.places import DOCS, results
from flows import plots
from modcap.selection import random_k, spans

MOBILENET, RESNET = "mobilenet_v2_x0_5", "resnet18_narrow"
NETWORKS = (MOBILENET, RESNET, "vgg_tiny", "regnet_tiny")
K = {MOBILENET: 4}  # boundaries to select; 2 in the others, which have half as many modules
ITERATIONS = 100
_KINDS = "data-free", "data-dependent"
_TWO = (2, 2), (2, 4)  # bits, where joining does most
LONGER = 150  # about the work of joined groups at equal steps per module
DRAWS = 10  # random choices of boundaries beside the rules
MOST = 4  # boundaries, in accuracy against k with the quick preset
_SPAN = 0.5  # points to each side of 0 that a panel shows at least
IDENTITY = ("network", "bits", "method", "selection", "per", "seed", "iterations", "tests")

# What the authors' configurations join (github.com/bytedance/MRECG, configs/qdrop): of MobileNetV2
# blocks as mbv2_2_4.yaml counts them, of ResNet-18 (r18_2_4.yaml) layer1.1 with layer2.0 and
# layer2.1 with layer3.0, which are the children 4 to 7 here
AUTHORS = {
    MOBILENET: [
        [f"features.{block}.conv" for block in group]
        for group in ((3, 4), (6, 7), (9, 10, 11), (12, 13, 14), (16, 17))
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
    found += [Batch(MOBILENET, b, "qdrop", 0, t) for t in ("single", "draws") for b in _TWO]
    return found


def single(bits: tuple[int, int], setting: Setting) -> Iterator[Variant]:
    """Every boundary joined alone, with what capacity says of it."""
    names = setting.module_names()
    width = {"w_bits": bits[0], "a_bits": bits[1]}
    free, dependent = (
        setting.selection(capacity=kind, **width) for kind in ("data-free", "data-dependent")
    )
    for at, pair in enumerate(itertools.pairwise(names)):
        labels = {
            "selection": f"only {pair[0]}",
            "per": "module",
            "homogeneous": free["allowed"][at],
            "data-free": free["differentials"][at],
            "data-dependent": dependent["differentials"][at],
        }
        recipe = steps(ITERATIONS, **joined([pair]), iterations_per="module")
        yield Variant(labels, bits, recipe)


def variants(batch: Batch, setting: Setting) -> Iterator[Variant]:
    network, names = batch.network, setting.module_names()
    if batch.table == "single":
        yield from single(batch.bits, setting)
        return
    if batch.table == "quick":
        most = min(MOST, setting.homogeneous())
        for name, fields in with_tuning(network, names, most).items():
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
    setting = Setting(batch.network, batch.method, batch.seed, batch.tests)
    return list(setting.rows(variants(batch, setting), known, IDENTITY))


def mean(rows: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.mean(row[name] for row in rows)


def selection_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| network | bits | method | selection | k | steps per | top-1 % (min to max, n) "
        "| to none | oscillation | final error | s | revision |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    cells = grouped(rows, ("network", "bits", "method", "selection", "per"))
    for key in sorted(cells, key=lambda key: (NETWORKS.index(key[0]), key[1], key[2])):
        some = cells[key]
        none = unjoined(cells.get((*key[:3], "none", "group"), []))
        gain = [r["top1"] - none[r["seed"]] for r in some if r["seed"] in none]
        top = [r["top1"] for r in some]
        lines.append(
            f"| {key[0]} | {key[1]} | {key[2]} | {key[3]} | {some[0]['k']} | {key[4]} "
            f"| {spread(top)} "
            f"| {statistics.mean(gain):+.2f} | {mean(some, 'oscillation'):.3f} "
            f"| {mean(some, 'final_error'):.4f} | {mean(some, 'reconstruct_seconds'):.0f} "
            f"| {revisions(some)} |"
            if gain
            else f"| {' | '.join(key)} | {top} |"
        )
    return lines


def unjoined(rows: Sequence[dict[str, Any]]) -> dict[int, float]:
    """The top-1 of no joining, by seed."""
    return {row["seed"]: row["top1"] for row in rows if row["selection"] == "none"}


def gain_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Points of top-1 over no joining at equal steps in all, by selection: means over seeds."""
    names = list(dict.fromkeys(r["selection"] for r in rows if r["selection"] != "none"))
    lines = [
        f"| network | bits | method | seeds | none, top-1 % | {' | '.join(names)} | revision |",
        "|---" * (len(names) + 6) + "|",
    ]
    cells = grouped(rows, ("network", "bits", "method"))
    for key in sorted(cells, key=lambda key: (NETWORKS.index(key[0]), *key[1:])):
        none = unjoined(cells[key])
        gains: dict[str, list[float]] = {name: [] for name in names}
        for row in cells[key]:
            if row["per"] == "module" and row["seed"] in none:
                gains[row["selection"]].append(row["top1"] - none[row["seed"]])
        means = [f"{statistics.mean(g):+.2f}" if g else "" for g in gains.values()]
        lines.append(
            f"| {' | '.join(key)} | {len(none)} | {statistics.mean(none.values()):.2f} "
            f"| {' | '.join(means)} | {revisions(cells[key])} |"
        )
    return lines


def correlation_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Spearman's rank correlation with the loss of top-1, over the variants of each setting."""
    from scipy.stats import spearmanr

    lines = [
        "| network | bits | method | cells | oscillation | final error |",
        "|---|---|---|---|---|---|",
    ]
    cells = grouped(rows, ("network", "bits", "method"))
    for key in sorted(cells, key=lambda key: (NETWORKS.index(key[0]), *key[1:])):
        some = cells[key]
        loss = [row["fp_top1"] - row["top1"] for row in some]
        rho = [
            float(spearmanr([row[n] for row in some], loss).statistic)
            for n in ("oscillation", "final_error")
        ]
        lines.append(f"| {' | '.join(key)} | {len(some)} | {rho[0]:+.2f} | {rho[1]:+.2f} |")
    return lines


def k_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| selection | k | top-1 % | oscillation | final error |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['selection']} | {r['k']} | {r['top1']:.2f} | {r['oscillation']:.3f} "
        f"| {r['final_error']:.4f} |"
        for r in rows
    ]
    return lines


def quick_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Work is processor seconds beside k = 0, of selection as far as rows know it, reconstruction,
    corrections and all tuning."""
    lines = [
        "| network | bits | quick preset with | k | top-1 % (min to max, n) | to k=0 | final error "
        "| before tuning | work | revision |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    cells = grouped(rows, ("network", "bits", "selection"))
    for key in sorted(cells, key=lambda key: (NETWORKS.index(key[0]), key[1])):
        some, base = cells[key], {r["seed"]: r for r in cells[(*key[:2], "quick, k=0")]}
        gain = statistics.mean(r["top1"] - base[r["seed"]]["top1"] for r in some)
        work = statistics.mean(seconds(r) / seconds(base[r["seed"]]) for r in some)
        ks = sorted({r["k"] for r in some})
        lines.append(
            f"| {' | '.join(key).replace('quick, ', '')} | {', '.join(map(str, ks))} "
            f"| {spread([r['top1'] for r in some])} "
            f"| {gain:+.2f} | {mean(some, 'final_error'):.4f} | {mean(some, 'untuned_error'):.4f} "
            f"| {work:.2f} | {revisions(some)} |"
        )
    return lines


def tables(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Gains, selections, rank correlations, accuracy against k, the quick preset, random draws;
    those with rows."""
    quick = [r for r in rows if r["selection"].startswith("quick")]
    against_k = [r for r in rows if r["selection"].startswith(("paper, ", "log, "))]
    by_chance = [r for r in rows if r["selection"].startswith("draw")]
    alone = [r for r in rows if r["selection"].startswith("only")]
    table = compared(rows)
    setting = (MOBILENET, "W2A4", "qdrop", 0, "none")
    of_setting = ("network", "bits", "method", "seed", "selection")
    none = [r for r in table if tuple(r[n] for n in of_setting) == setting]
    found = {
        "gains": gain_table(table),
        "selections": selection_table(table),
        "correlations": correlation_table(table),
    }
    if against_k:
        found["k"] = k_table([*none, *against_k])
    if quick:
        found["quick"] = quick_table(quick)
    if by_chance:
        found["draws"] = draw_table(by_chance, table)
    if alone:
        found["single"] = single_table(alone, table)
    return found


def draw_table(by_chance: Sequence[dict[str, Any]], table: Sequence[dict[str, Any]]) -> list[str]:
    """Random choices of as many boundaries beside each rule, on one seed, at equal steps in all."""
    lines = [
        "| network | bits | none | random draws, mean (min to max, n) | selection | top-1 % "
        "| draws above | revision |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (network, bits, seed), chance in grouped(by_chance, ("network", "bits", "seed")).items():
        setting = (network, bits, "qdrop", seed)
        of_setting = ("network", "bits", "method", "seed")
        own = [r for r in table if tuple(r[n] for n in of_setting) == setting]
        none = unjoined(own)[seed]
        tops = [r["top1"] for r in chance]
        for row in (r for r in own if r["per"] == "module" and r["selection"] != "random"):
            above = sum(top > row["top1"] for top in tops)
            lines.append(
                f"| {network} | {bits} | {none:.2f} | {spread(tops)} | {row['selection']} "
                f"| {row['top1']:.2f} | {above} | {revisions([row, *chance])} |"
            )
    return lines


def single_table(alone: Sequence[dict[str, Any]], table: Sequence[dict[str, Any]]) -> list[str]:
    """What each boundary gains alone, beside its differentials; and how their ranks agree."""
    from scipy.stats import spearmanr

    kinds = _KINDS
    bits = sorted({row["bits"] for row in alone})
    lines = [
        "| joined with the next | homogeneous |"
        + "".join(f" {kind} differential {b} |" for b in bits for kind in kinds)
        + "".join(f" gain {b} |" for b in bits)
        + " revision |",
    ]
    lines.append("|---" * (3 + 3 * len(bits)) + "|")
    by_name = grouped(alone, ("selection",))
    gain = {(r["selection"], r["bits"]): r["top1"] - _none_beside(r, table) for r in alone}
    for (name,), some in by_name.items():
        by_bits = {row["bits"]: row for row in some}
        lines.append(
            f"| {name.removeprefix('only ')} | {'yes' if some[0]['homogeneous'] else 'no'} |"
            + "".join(f" {by_bits[b][k]:.2g} |" for b in bits for k in kinds)
            + "".join(f" {gain[name, b]:+.2f} |" for b in bits)
            + f" {revisions(some)} |"
        )
    rho = []
    for b in bits:
        own = [row for row in alone if row["bits"] == b]
        for homogeneous in (False, True):
            some = [row for row in own if row["homogeneous"] or not homogeneous]
            gains = [gain[row["selection"], b] for row in some]
            found = [float(spearmanr([r[k] for r in some], gains).statistic) for k in kinds]
            which = "homogeneous ones" if homogeneous else "all boundaries"
            rho.append(f"{b}, {which} ({len(some)}): {found[0]:+.2f} and {found[1]:+.2f}")
    return [*lines, "", f"Spearman's ρ of gain and differential, {'; '.join(rho)}."]


def _none_beside(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> float:
    """The top-1 of no joining in the setting of ``row``, at 100 steps."""
    names = ("network", "bits", "method", "seed")
    (found,) = (
        r["top1"] for r in rows if r["selection"] == "none" and all(r[n] == row[n] for n in names)
    )
    return float(found)


def compared(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that compare selections, of the same k, without tuning."""
    others = ("paper, ", "log, ", "quick", "draw", "only")
    return [row for row in rows if not row["selection"].startswith(others)]


def picture(rows: Sequence[dict[str, Any]]) -> Figure:
    """What each selection gains over none: a panel for each setting, a dot for each mean."""
    some = compared(rows)
    settings = sorted(
        {(r["network"], r["bits"], r["method"]) for r in some},
        key=lambda s: (NETWORKS.index(s[0]), s[1:]),
    )
    names = list(dict.fromkeys(r["selection"] for r in some if r["selection"] != "none"))
    columns = min(4, len(settings))
    lines = -(-len(settings) // columns)
    figure = Figure(figsize=(3 + 2.3 * columns, 0.6 + 2.3 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, sharey=True, squeeze=False).flat)
    for panel, setting in zip(panels, settings, strict=False):
        own = [r for r in some if (r["network"], r["bits"], r["method"]) == setting]
        none = unjoined(own)
        for per, colour, mark, shift in (
            ("group", "#0072B2", "o", -0.15),
            ("module", "#D55E00", "s", 0.15),
        ):
            for place, name in enumerate(names):
                gains = [
                    r["top1"] - none[r["seed"]]
                    for r in own
                    if (r["selection"], r["per"]) == (name, per)
                ]
                if gains:
                    y, label = place + shift, f"steps per {per}" if place == 0 else None
                    panel.plot([min(gains), max(gains)], [y, y], color=colour, lw=1.2)
                    panel.plot(
                        statistics.mean(gains), y, mark, color=colour, ms=4.5, label=label, ls=""
                    )
        panel.axvline(0, color="#999999", lw=0.8, zorder=0)
        panel.set_title(f"{setting[0]}\n{setting[1]} {setting[2]}, n = {len(none)}", fontsize=8)
        panel.set_yticks(range(len(names)), names, fontsize=8)
        panel.tick_params(axis="x", labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="x", alpha=0.3)
        low, high = panel.get_xlim()
        panel.set_xlim(min(low, -_SPAN), max(high, _SPAN))  # what is noise shall look small
    for panel in panels[len(settings) :]:
        panel.remove()
    figure.axes[0].invert_yaxis()
    figure.supxlabel("points of top-1 over no joining: mean, and from least to most", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    return figure


def single_picture(rows: Sequence[dict[str, Any]]) -> Figure:
    """What each boundary gains alone against its differential: a panel for bits and kind."""
    alone = [r for r in rows if r["selection"].startswith("only")]
    panels = [(b, k) for b in sorted({r["bits"] for r in alone}) for k in _KINDS]
    figure = Figure(figsize=(3 * len(panels), 3.1), layout="constrained")
    for axis, (bits, kind) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        own = [row for row in alone if row["bits"] == bits]
        none = _none_beside(own[0], rows)
        least = min(row[kind] for row in own if row[kind]) / 10  # stands for 0
        for homogeneous, colour in ((True, "#0072B2"), (False, "#E69F00")):
            some = [row for row in own if row["homogeneous"] is homogeneous]
            label = "homogeneous neighbours" if homogeneous else "others"
            axis.plot(
                [max(row[kind], least) for row in some],
                [row["top1"] - none for row in some],
                "o", color=colour, ms=5, label=label,
            )  # fmt: skip
        axis.axhline(0, color="#999999", lw=0.8, zorder=0)
        axis.set_xscale("log")
        axis.set_title(f"{bits}, {kind}", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("differential of the boundary (data-free: the leftmost are 0)", fontsize=9)
    figure.supylabel("points of top-1 that joining it gains", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two networks, 30 steps, one seed")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--tables", action="store_true", help="write the tables, measure nothing")
    args = parser.parse_args()
    path = results("fidelity", args.quick)
    todo = [] if args.tables else batches(args.quick)
    if args.fresh:
        forget()
    rows = collect(
        path, IDENTITY, [partial(measure, batch) for batch in todo], args.workers, args.fresh
    )
    found = tables(rows)
    if not args.quick:
        for mark, lines in found.items():
            publish("evidence.md", mark, "\n".join(lines))
        (DOCS / "images/evidence-selections.png").write_bytes(plots.png(picture(rows)))
        (DOCS / "images/evidence-boundaries.png").write_bytes(plots.png(single_picture(rows)))
    print("\n\n".join("\n".join(lines) for lines in found.values()))


if __name__ == "__main__":
    main()
