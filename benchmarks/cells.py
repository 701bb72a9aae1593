"""Cells of a benchmark: recipes run here on a shipped checkpoint, each as one row of figures."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.pages import publish
from benchmarks.places import CHECKPOINTS, HOME, ROOT, results
from modcap.checkpoints import checkpoint
from modcap.checkpoints.published_preprocess import published_preprocess
from modcap.core.serialization import Result, canonical, decode, digest, encode
from modcap.data import sources as data
from modcap.data.image_set import ImageSet
from modcap.graph.network import Network, build
from modcap.jobs.job import REVISION, Cell, Job
from modcap.jobs.plan import plan
from modcap.jobs.run_job import run_job
from modcap.jobs.simulate import critical_path
from modcap.jobs.worker_cache import WorkerCache
from modcap.ptq.capacity import homogeneous
from modcap.recipe import Recipe, Selection

MOBILENET, RESNET = "mobilenet_v2_x0_5", "resnet18_narrow"
NETWORKS = (MOBILENET, RESNET, "vgg_tiny", "regnet_tiny")


@dataclass(frozen=True)
class Variant:
    """A recipe to measure: fields over a preset, and labels that name it in its row."""

    labels: dict[str, Any]
    bits: tuple[int, int]
    fields: dict[str, Any]
    preset: str = "quick"


NEAREST: dict[str, Any] = {"method": "rtn", "correction": True}


SOFT: dict[str, Any] = {"rounding": {"name": "soft", "rate": 3e-2, "decay": True}}
"""The optimiser as it is in AdaRound, BRECQ and QDrop, but faster."""


def steps(count: int, **fields: Any) -> dict[str, Any]:
    """Recipe fields: groups one after another with soft rounding, no tuning or one of fixed
    integers, no joins; ``fields`` go over these."""
    usual = {"k": 0, "schedule": "sequential", "tuning": 0, "tuning_rounding_rate": 0}
    return usual | {"optimiser": {"iterations": count, **SOFT}} | fields


def short(fields: dict[str, Any]) -> dict[str, Any]:
    """The same in few steps."""
    optimiser = fields.get("optimiser", {}) | {"iterations": 20}
    return fields | {"optimiser": optimiser, "tuning": min(20, fields.get("tuning", 20))}


def seconds(row: dict[str, Any]) -> float:
    """Processor seconds of selection, reconstruction, corrections and tuning, as far as the row
    knows them."""
    parts = ("select_seconds", "reconstruct_seconds", "finish_seconds")
    return float(sum(row.get(part, 0) for part in parts))


def revisions(rows: Iterable[dict[str, Any]]) -> str:
    """Of the algorithm, by which the rows were measured; those of 6 and before do not know it."""
    found = sorted({row.get("revision", 6) for row in rows})
    return ", ".join("≤ 6" if n == 6 else str(n) for n in found)


def grouped(
    rows: Iterable[dict[str, Any]], names: Sequence[str]
) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Rows by what they have under ``names``."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def spread(values: Sequence[float]) -> str:
    """Their mean, range and number, for a table."""
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f}, {len(values)})"


_CODE = hashlib.sha256(b"".join(f.read_bytes() for f in sorted((ROOT / "modcap").rglob("*.py"))))
KEPT = HOME / "cells" / _CODE.hexdigest()[:16]
"""The results of jobs that this very code computed: they know how long that took."""


def forget() -> None:
    """Deletes what is kept, so that it is computed, and timed, again."""
    shutil.rmtree(KEPT, ignore_errors=True)


Known = dict[str, str]
"""Rows that need not be measured again: identity to digest of all that was measured."""
Task = Callable[[Known], list[dict[str, Any]]]


def arguments(page: str | None, workers: int | None = None) -> argparse.ArgumentParser:
    """The command line of a benchmark that collects rows; ``workers`` is how many by default, for
    one that may have more."""
    parser = argparse.ArgumentParser(
        description=page, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the short form")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--tables", action="store_true", help="write the tables, measure nothing")
    if workers is not None:
        parser.add_argument("--workers", type=int, default=workers, help="processes at once")
    return parser


def collect_as_asked(
    args: argparse.Namespace, path: Path, names: Sequence[str], tasks: Sequence[Task]
) -> list[dict[str, Any]]:
    """:func:`collect`, by what was given on the command line."""
    if args.fresh:
        forget()
    return collect(path, names, () if args.tables else tasks, args.workers, args.fresh)


def collect_and_publish(
    doc: str | None,
    name: str,
    names: Sequence[str],
    tasks: Callable[[bool], Sequence[Task]],
    table: Callable[[list[dict[str, Any]]], str],
    page: str,
    mark: str,
) -> None:
    """The command line of a benchmark whose rows make one table: on the terminal, and, but for the
    short form, at ``mark`` of docs/``page``."""
    args = arguments(doc, 1).parse_args()
    path = results(name, args.quick)
    rows = collect_as_asked(args, path, names, tasks(args.quick))
    if not args.quick:
        publish(page, mark, table(rows))
    print(table(rows))


def identity(row: dict[str, Any], names: Sequence[str]) -> str:
    """What tells a row from all others."""
    return json.dumps([row[name] for name in names])


def collect(
    path: Path,
    names: Sequence[str],
    tasks: Iterable[Task],
    workers: int | None,
    fresh: bool = False,
) -> list[dict[str, Any]]:
    """The rows of the JSON file ``path``, and those that ``tasks`` add, each in a process.

    A task is told what need not be measured again: rows of this revision of the algorithm, by
    their identity (over ``names``). What it returns is written at once: a benchmark that was
    stopped goes on where it was. Where a task fails, the others go on; its error comes at the end.
    Other rows stay until they have been measured again; with ``fresh`` that are all.
    """
    kept: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    rows = {identity(row, names): row for row in kept}
    known = {
        name: row.get("digest", "")
        for name, row in rows.items()
        if row.get("revision") == REVISION and not fresh
    }
    with ProcessPoolExecutor(workers) as pool:
        started = [pool.submit(task, known) for task in tasks]
        for done in as_completed(started):
            new = [] if done.exception() else done.result()
            for row in new:
                name = identity(row, names)
                if "error" not in row or "error" in rows.get(name, row):  # figures stay
                    rows[name] = row
            whole = path.with_suffix(".new")
            whole.write_text(json.dumps(list(rows.values()), indent=1) + "\n")
            whole.replace(path)
            for row in new:
                print(identity(row, names), row.get("top1", row.get("error", "")), flush=True)
    for done in started:
        done.result()
    return list(rows.values())


def _chosen(meta: dict[str, Any]) -> dict[str, Any]:
    """What a choice of bits said of itself."""
    names = ("average_bits", "predicted_error", "predicted_drop")
    return {"layer_bits": meta["bits"]} | {name: meta[name] for name in names if name in meta}


class Setting:
    """One network, method and seed, on one thread; its cells share the jobs they have in common."""

    def __init__(
        self,
        name: str,
        network: Network,
        calibration: ImageSet,
        evaluation: ImageSet,
        method: str,
        seed: int,
    ) -> None:
        torch.set_num_threads(1)
        self.name, self.method, self.seed, self.tests = name, method, seed, len(evaluation)
        self.network, self.calibration, self.evaluation = network, calibration, evaluation
        inputs = (self.network, self.calibration, self.evaluation)
        self._bench = WorkerCache.holding({x.digest: x for x in inputs})
        self._results: dict[str, Result] = {}
        self._seconds: dict[str, float] = {}  # of the processor: others may use the machine too

    @classmethod
    def shipped(cls, name: str, method: str, seed: int, tests: int) -> Setting:
        """Of a checkpoint in examples/, on Fashion-MNIST."""
        torch.set_num_threads(1)
        arch = f"modcap.zoo:{name}"
        preprocess = published_preprocess(arch)
        pool = data.load("fashion-mnist", split="calibration", preprocess=preprocess)
        images = data.load("fashion-mnist", split="evaluation", preprocess=preprocess)
        calibration, evaluation = (
            ImageSet(
                torch.tensor(x.images), torch.tensor(x.labels), preprocess.mean, preprocess.std
            )
            for x in (data.calibration(pool, 1024, seed), images.take(range(tests)))
        )
        model = checkpoint.load(CHECKPOINTS / f"{name}.safetensors", arch).model
        network = build(model, calibration.normalized(0, 2))
        return cls(name, network, calibration, evaluation, method, seed)

    def module_names(self) -> tuple[str, ...]:
        return self.network.partition.names

    def homogeneous(self) -> int:
        """How many boundaries the paper's rule lets one select."""
        return sum(homogeneous(self.network.partition.modules))

    def selection(self, variant: Variant) -> dict[str, Any]:
        """Capacities, differentials, and which boundaries are homogeneous."""
        made = plan([self._cell(self._recipe(variant))], self._results.get)
        self._run(job for job in made.jobs if job.key not in self._results)
        return self._results[made.cells[0].select].meta

    def rows(
        self, variants: Iterable[Variant], known: Known, names: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        """The figures of each variant that is not ``known`` yet by its identity (over ``names``),
        or has another recipe, checkpoint or images by now."""
        for variant in variants:
            recipe = self._recipe(variant)
            row = {
                "network": self.name,
                "bits": recipe.bits_label,
                "method": self.method,
                "seed": self.seed,
                "iterations": recipe.optimiser.iterations,
                "tests": self.tests,
                "revision": REVISION,
                "digest": self._digest(recipe),
                **variant.labels,
            }
            if known.get(identity(row, names)) != row["digest"]:
                yield row | self._figures(recipe)

    def _recipe(self, variant: Variant) -> Recipe:
        w_bits, a_bits = variant.bits
        usual = {"w_bits": w_bits, "a_bits": a_bits, "method": self.method, "seed": self.seed}
        return Recipe.preset(variant.preset, **usual | variant.fields)

    def _digest(self, recipe: Recipe) -> str:
        """Of all that decides the figures of ``recipe``, but for the revision."""
        inputs = [x.digest for x in (self.network, self.calibration, self.evaluation)]
        implied = [recipe.corrects, recipe.tuning_steps]
        if recipe.k is None and recipe.selection is Selection.TOP_K:
            implied.append(recipe.trial_steps)
        return digest(canonical([recipe.digest, implied, inputs]))[:16]

    def _cell(self, recipe: Recipe) -> Cell:
        return Cell(self.network, self.calibration.digest, self.evaluation.digest, recipe)

    def _run(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._results[job.key], self._seconds[job.key] = self._kept(job)

    def _kept(self, job: Job) -> tuple[Result, float]:
        """The result of ``job`` and its processor seconds, from a file where it is there: a cell
        that was stopped goes on where it was."""
        file = KEPT / job.key
        if file.with_suffix(".json").exists():
            parts = (file.with_suffix(s).read_bytes() for s in (".json", ".safetensors"))
            result = decode(*parts)
            return result, result.meta["processor_seconds"]
        start = time.process_time()
        result = run_job(job, self._bench, [self._results[key] for key in job.needs])
        seconds = time.process_time() - start
        file.parent.mkdir(parents=True, exist_ok=True)
        document, tensors = encode(
            Result(result.tensors, result.meta | {"processor_seconds": seconds})
        )
        # the document comes last: it says that both are there
        for suffix, part in ((".safetensors", tensors), (".json", document)):
            whole = file.with_suffix(f".{os.getpid()}")  # others may compute the same job
            whole.write_bytes(part)
            whole.replace(file.with_suffix(suffix))
        return result, seconds

    def _figures(self, recipe: Recipe) -> dict[str, Any]:
        results, cell = self._results, self._cell(recipe)
        while todo := [j for j in plan([cell], results.get).jobs if j.key not in results]:
            self._run(todo)
        made = plan([cell], results.get)
        (planned,) = made.cells
        evaluated = results[planned.evaluate].meta
        names = self.module_names()
        reconstructions = made.reconstructions(planned)
        kept = {*reconstructions, *planned.finish}
        optimised = [job for job in made.jobs if job.key in kept | {planned.select}]
        path, _ = critical_path(optimised, made.waits, self._seconds)
        decisions = {*planned.capacities, planned.select, *results[planned.select].meta["needs"]}
        decisions -= kept
        return {
            "bytes": results[planned.assemble].meta["artifact_bytes"],
            **(_chosen(results[planned.allocate].meta) if planned.allocate else {}),
            "k": results[planned.select].meta["k"],
            "groups": [list(names[a:b]) for a, b in planned.groups if b - a > 1],
            "top1": evaluated.get("top1", evaluated.get("value")),
            "fp_top1": results[planned.evaluate_full].meta.get("top1"),
            "oscillation": evaluated["oscillation"],
            "final_error": evaluated["final_error"],
            "untuned_error": results[planned.tune].meta["error_before"] if planned.tune else None,
            "reconstructions": len(reconstructions),
            "select_seconds": round(sum(self._seconds[key] for key in decisions), 1),
            "reconstruct_seconds": round(sum(self._seconds[key] for key in reconstructions), 1),
            "finish_seconds": round(sum(self._seconds[key] for key in planned.finish), 1),
            "path_seconds": round(path, 1),
        }
