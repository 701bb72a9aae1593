"""The time left of the main job (make quantize), on durations that were recorded on one core."""

from __future__ import annotations

import heapq
import json
from dataclasses import replace
from pathlib import Path

import pytest

from modcap.core.serialization import Result
from modcap.flows.execution.time_left import TimeLeft
from modcap.flows.requests.asked import Request
from modcap.flows.requests.without_images import prepare_to_look
from modcap.jobs.job import Cell
from modcap.jobs.plan import Plan, plan
from modcap.jobs.run_job import run_job
from modcap.jobs.worker_cache import WorkerCache
from modcap.recipe import Recipe
from tests.rooms import ROOT

RECORDED = json.loads((Path(__file__).parent / "data/main_job_seconds.json").read_text())
TEST_IMAGES = 10_000


def cells() -> list[Cell]:
    checkpoint = ROOT / "examples/fashion_mnist/checkpoints/mobilenet_v2_x0_5.safetensors"
    recipe = Recipe.preset("quick", w_bits=2, a_bits=4)
    arch = "modcap.zoo:mobilenet_v2_x0_5"
    cell = prepare_to_look(Request(checkpoint=str(checkpoint), arch=arch, recipe=recipe)).cell
    pixels = TEST_IMAGES * cell.network.input_shape[1] * cell.network.input_shape[2]
    plain = {"method": "rtn", "k": 0, "correction": False, "tuning": 0}
    main = replace(cell, pixels=pixels)
    return [
        main,
        replace(main, recipe=Recipe.make(plain, recipe), name="rtn"),
        replace(main, recipe=Recipe.make({"k": 0}, recipe), name="k=0"),
    ]


class Simulated:
    """A run on some workers, by a clock that jumps from one end of a job to the next."""

    def __init__(self, workers: int) -> None:
        self.now, self.workers = 0.0, workers
        self.left = TimeLeft(lambda: self.now)
        self.said: list[tuple[float, float]] = []  # when, and seconds left

    def run(self) -> None:
        made = cells()
        network = made[0].network
        cache = WorkerCache.holding({network.digest: network})
        known: dict[str, Result] = {}
        done: set[str] = set()
        while True:
            current = plan(made, known.get)
            todo = {job.key for job in current.jobs} - done
            if not todo:
                return
            self.left.planned(current, done)
            for job in current.jobs:
                if job.work.small and job.key not in known:
                    known[job.key] = run_job(job, cache, [known[need] for need in job.needs])
                    done.add(job.key)
                elif job.kind == "choose" and job.key in todo:
                    known[job.key] = Result(meta={"chosen": 0})
            self._work(current, done)

    def _work(self, current: Plan, done: set[str]) -> None:
        durations = seconds_of(current)
        waiting = [job for job in current.jobs if job.key not in done]
        running: list[tuple[float, int]] = []
        while waiting or running:
            for job in list(waiting):
                if len(running) < self.workers and set(job.needs) <= done:
                    index = current.jobs.index(job)
                    heapq.heappush(running, (self.now + durations[job.key], index))
                    waiting.remove(job)
            self.now, index = heapq.heappop(running)
            job = current.jobs[index]
            done.add(job.key)
            self.left.finished(job, durations[job.key])
            seconds = self.left.seconds({})
            if seconds is not None and job.work.steps:
                self.said.append((self.now, seconds))


def seconds_of(current: Plan) -> dict[str, float]:
    """The recorded duration of each job, by kind, and by label where labels do not repeat."""
    found: dict[str, float] = {}
    by_label: dict[tuple[str, str], list[float]] = {}
    for kind, label, seconds in RECORDED:
        by_label.setdefault((kind, label), []).append(seconds)
    by_kind: dict[str, list[float]] = {}
    for kind, _, seconds in RECORDED:
        by_kind.setdefault(kind, []).append(seconds)
    for job in current.jobs:
        usual = by_label.get((job.kind, job.label)) or by_kind[job.kind]
        found[job.key] = sum(usual) / len(usual)
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_estimate_of_the_main_job_is_within_a_factor_of_2_and_holds(workers: int) -> None:
    run = Simulated(workers)
    run.run()
    assert len(run.said) > 20
    for when, seconds in run.said:
        if run.now - when > 10:
            assert 0.5 < seconds / (run.now - when) < 2, (when, seconds, run.now)
