"""What the check found, as a page of markdown."""

from __future__ import annotations

from typing import Any

__all__ = ["page"]

_GB = 1e9


def page(found: dict[str, Any]) -> str:
    """A line for each section, and a table of jobs for each whole run."""
    lines = ["# Check of the GPU", "", "| section | s | result |", "|---|---|---|"]
    for name, figures in found.items():
        said = figures.get("error") or _summary(figures)
        lines.append(f"| {name} | {figures.get('section_seconds', '')} | {_cell(said)} |")
    for name, figures in found.items():
        if figures.get("images"):
            lines += _run(name, figures)
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:400]


def _summary(figures: dict[str, Any]) -> str:
    left_out = ("jobs", "section_seconds") if figures.get("images") else ("section_seconds",)
    return ", ".join(f"{n}: {v}" for n, v in figures.items() if n not in left_out)


def _run(name: str, figures: dict[str, Any]) -> list[str]:
    """By kind of job: how many, seconds, the slowest step, the most memory beside its estimate."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for job in figures["jobs"]:
        kinds.setdefault(job["kind"], []).append(job)
    lines = ["", f"## {name}: {figures['seconds']} s", ""]
    lines += ["| kind | jobs | s | slowest step, ms | GB taken, most | GB asked for |"]
    lines += ["|---|---|---|---|---|---|"]
    for kind, jobs in kinds.items():
        most = max(jobs, key=lambda job: job.get("reserved_bytes", 0))
        step = max((job.get("ms_per_step", 0) for job in jobs), default=0) or ""
        memory = [most.get(n) for n in ("reserved_bytes", "estimated_bytes")]
        sizes = ["" if size is None else f"{size / _GB:.2f}" for size in memory]
        seconds = round(sum(job["seconds"] for job in jobs), 1)
        lines.append(f"| {kind} | {len(jobs)} | {seconds} | {step} | {' | '.join(sizes)} |")
    return lines
