"""What jobs ask of a cluster, and the refusal of what it cannot give."""

from __future__ import annotations

from typing import Any

import pytest

from modcap.core.errors import InputError
from modcap.jobs.job import Job, Room
from modcap.jobs.kinds.evaluate import EvaluateFull
from modcap.jobs.kinds.whole import Tune
from modcap.tasks.workers import ray_resources as resources
from modcap.tasks.workers.ray_resources import (
    GPU_MEMORY,
    MOST_IN_FLIGHT,
    in_flight,
    refuse_impossible,
    request,
)

GIB = 1 << 30


def job(**values: Any) -> Job:
    work = EvaluateFull(threads=values.pop("threads", 1), device=values.pop("device", "cpu"))
    return Job(work, {}, label="qdrop W2A4 block", room=Room(**values))


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    monkeypatch.setattr(resources, "_nodes", lambda: found)
    return found


def test_requests_follow_the_job_and_grow(nodes: list[dict[str, float]]) -> None:
    assert request(job(threads=2, memory=GIB)) == {"num_cpus": 2, "memory": GIB}
    assert request(job(memory=GIB), growth=4)["memory"] == 4 * GIB


def test_share_of_a_gpu_is_given_or_what_the_memory_needs(nodes: list[dict[str, float]]) -> None:
    nodes += [{"CPU": 8, "GPU": 1}]
    assert request(job(device="cuda", memory=8 * GIB))["num_gpus"] == 1.0  # sizes are unknown
    nodes += [{"CPU": 8, "GPU": 4, GPU_MEMORY: 80 * GIB}, {"GPU": 1, GPU_MEMORY: 16 * GIB}]
    assert request(job(device="cuda", memory=8 * GIB))["num_gpus"] == 0.5  # the smallest counts
    assert request(job(device="cuda", memory=8 * GIB), growth=4)["num_gpus"] == 1.0
    assert request(job(device="cuda", memory=99 * GIB, gpus=0.25))["num_gpus"] == 0.25


def test_as_many_jobs_are_in_flight_as_keep_the_cluster_busy(
    nodes: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes += [{"CPU": 2}]
    assert in_flight() == 60
    nodes += [{"CPU": 64}] * 4
    assert in_flight() == 516
    monkeypatch.setenv("MODCAP_AUTOSCALING", "1")
    assert in_flight() == MOST_IN_FLIGHT


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"threads": 9}, "9 CPU threads"),
        ({"memory": 9 * GIB}, "1 CPU threads, 9.0 GiB"),
        ({"threads": 3, "memory": 3 * GIB}, "3 CPU threads, 3.0 GiB"),  # on one and the same node
        ({"device": "cuda"}, "1 CPU threads, 1 GPU"),
    ],
)
def test_what_no_node_holds_is_refused_with_what_is_there(
    nodes: list[dict[str, float]],
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
    said: str,
) -> None:
    nodes += [{"CPU": 2, "memory": 8 * GIB}, {"CPU": 8, "memory": 2 * GIB}]
    refuse_impossible([job(threads=8), job(memory=8 * GIB)])
    with pytest.raises(InputError) as refused:
        refuse_impossible([job(), job(**asked)])
    text = str(refused.value)
    assert text.startswith(f"job 'qdrop W2A4 block' asks for {said}, and no node")
    assert "nodes: 2 CPU threads, 8.0 GiB; 8 CPU threads, 2.0 GiB" in text
    monkeypatch.setenv("MODCAP_AUTOSCALING", "1")
    refuse_impossible([job(**asked)])  # a larger node may come


def test_the_lever_that_is_named_changes_what_is_lacking(nodes: list[dict[str, float]]) -> None:
    nodes += [{"CPU": 2, "memory": 4 * GIB}]

    def said(job: Job) -> str:
        with pytest.raises(InputError) as refused:
            refuse_impossible([job])
        return str(refused.value).partition("): ")[2]

    assert said(job(threads=3)) == "lower the recipe's threads, or add a larger node"
    assert "smaller images" in said(job(memory=5 * GIB, activation_bytes=GIB))  # it holds none
    work = Tune(
        **{"bits": (), "iterations": 1, "rate": 0.1, "rounding_rate": 0.1, "batch_size": 1},
        **{"seed": 0, "precision": "float32", "threads": 1},
    )
    for held, lever in ((GIB, "activation_memory"), (GIB // 4, "smaller images")):
        room = Room(memory=5 * GIB, activation_bytes=held)
        assert lever in said(Job(work, {}, label="tune", room=room))
