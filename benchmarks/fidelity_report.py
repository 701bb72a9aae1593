"""What benchmarks.fidelity found: the tables and pictures of docs/evidence.md, from its rows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import spearmanr

from benchmarks.cells import NETWORKS, grouped, revisions, seconds, spread

CAPACITIES = "data-free", "data-dependent"
_SPAN = 0.5  # points to each side of 0 that a panel shows at least
_SETTING = ("network", "bits", "method", "seed")
_OWN_TABLES = {  # beginnings of selections that have a table of their own
    "k": ("paper, ", "log, "),
    "quick": ("quick",),
    "draws": ("draw",),
    "single": ("only",),
    "rounding": ("straight-through",),
}


def part(rows: Sequence[dict[str, Any]], table: str) -> list[dict[str, Any]]:
    """The rows of one of the tables that are not about selections of the same k."""
    return [row for row in rows if row["selection"].startswith(_OWN_TABLES[table])]


def compared(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that compare selections, of the same k, without tuning."""
    others = tuple(start for starts in _OWN_TABLES.values() for start in starts)
    return [row for row in rows if not row["selection"].startswith(others)]


def beside(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of ``rows`` that have the network, bits, method and seed of ``row``."""
    return [r for r in rows if all(r[name] == row[name] for name in _SETTING)]


def none_beside(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> float:
    """The top-1 of no joining in the setting of ``row``."""
    return unjoined(beside(row, rows))[row["seed"]]


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
        base = {r["seed"]: r for r in cells.get((*key[:2], "quick, k=0"), [])}
        some = [r for r in cells[key] if r["seed"] in base]
        if not some:
            continue
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


def rounding_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Top-1 by how weights are rounded, without joins: means over the seeds that all have."""
    names = "none", "straight-through", "quick, soft rounding", "quick, k=0"
    lines = [
        "| network | bits | seeds | soft, one after another | straight-through | soft, quick "
        "| **straight-through, quick** | final error, soft, quick | straight-through | revision |",
        "|---" * 10 + "|",
    ]
    own = [r for r in rows if r["selection"] in names and r["method"] == "qdrop"]
    cells = grouped(own, ("network", "bits"))
    for key in sorted(cells, key=lambda key: (NETWORKS.index(key[0]), key[1])):
        by_name = {n: {r["seed"]: r for r in cells[key] if r["selection"] == n} for n in names}
        seeds = set.intersection(*map(set, by_name.values()))
        if seeds:
            some = {n: [found[s] for s in sorted(seeds)] for n, found in by_name.items()}
            tops = " | ".join(f"{mean(r, 'top1'):.2f}" for r in some.values())
            errors = " | ".join(f"{mean(some[n], 'final_error'):.4f}" for n in names[2:])
            measured = revisions(row for found in some.values() for row in found)
            lines.append(f"| {' | '.join(key)} | {len(seeds)} | {tops} | {errors} | {measured} |")
    return lines


def tables(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Gains, selections, rank correlations, accuracy against k, the quick preset, random draws;
    those with rows."""
    table = compared(rows)
    found = {
        "gains": gain_table(table),
        "selections": selection_table(table),
        "correlations": correlation_table(table),
    }
    if against_k := part(rows, "k"):
        none = [r for r in beside(against_k[0], table) if r["selection"] == "none"]
        found["k"] = k_table([*none, *against_k])
    if quick := part(rows, "quick"):
        found["quick"] = quick_table(quick)
    if part(rows, "rounding"):
        found["rounding"] = rounding_table(rows)
    if by_chance := part(rows, "draws"):
        found["draws"] = draw_table(by_chance, table)
    if alone := part(rows, "single"):
        found["single"] = single_table(alone, table)
    return found


def draw_table(by_chance: Sequence[dict[str, Any]], table: Sequence[dict[str, Any]]) -> list[str]:
    """Random choices of as many boundaries beside each rule, on one seed, at equal steps in all."""
    lines = [
        "| network | bits | none | random draws, mean (min to max, n) | selection | top-1 % "
        "| draws above | revision |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (network, bits, _, seed), chance in grouped(by_chance, _SETTING).items():
        own = beside(chance[0], table)
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
    bits = sorted({row["bits"] for row in alone})
    lines = [
        "| joined with the next | homogeneous |"
        + "".join(f" {kind} differential {b} |" for b in bits for kind in CAPACITIES)
        + "".join(f" gain {b} |" for b in bits)
        + " revision |",
    ]
    lines.append("|---" * (3 + 3 * len(bits)) + "|")
    by_name = grouped(alone, ("selection",))
    gain = {(r["selection"], r["bits"]): r["top1"] - none_beside(r, table) for r in alone}
    for (name,), some in by_name.items():
        by_bits = {row["bits"]: row for row in some}
        lines.append(
            f"| {name.removeprefix('only ')} | {'yes' if some[0]['homogeneous'] else 'no'} |"
            + "".join(f" {by_bits[b][k]:.2g} |" for b in bits for k in CAPACITIES)
            + "".join(f" {gain[name, b]:+.2f} |" for b in bits)
            + f" {revisions(some)} |"
        )
    rho = []
    for b in bits:
        own = [row for row in alone if row["bits"] == b]
        for homogeneous in (False, True):
            some = [row for row in own if row["homogeneous"] or not homogeneous]
            gains = [gain[row["selection"], b] for row in some]
            found = [float(spearmanr([r[k] for r in some], gains).statistic) for k in CAPACITIES]
            which = "homogeneous ones" if homogeneous else "all boundaries"
            rho.append(f"{b}, {which} ({len(some)}): {found[0]:+.2f} and {found[1]:+.2f}")
    return [*lines, "", f"Spearman's ρ of gain and differential, {'; '.join(rho)}."]


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
    alone = part(rows, "single")
    panels = [(b, k) for b in sorted({r["bits"] for r in alone}) for k in CAPACITIES]
    figure = Figure(figsize=(3 * len(panels), 3.1), layout="constrained")
    for axis, (bits, kind) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        own = [row for row in alone if row["bits"] == bits]
        none = none_beside(own[0], rows)
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
