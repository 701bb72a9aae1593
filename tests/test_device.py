"""Where jobs compute: what ``auto`` becomes, what torch is told there, what a GPU runs out of."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from modcap.core.errors import InputError, ModcapError
from modcap.flows.execution.ray_tasks import RayTasks, _Try
from modcap.flows.registry.placed import device_here, placed
from modcap.flows.requests.asked import Request
from modcap.jobs.job import Cell, Job, Room
from modcap.jobs.kinds.evaluate import EvaluateFull
from modcap.jobs.plan import plan
from modcap.jobs.reproducible import reproducible
from modcap.recipe import Device, Recipe
from modcap.tasks.workers import gpus, ray_jobs, ray_resources
from modcap.tasks.workers.ray_resources import GPU_MEMORY
from tests.golden import small_network
from tests.pretend_gpu import pretend_gpu

GIB = 1 << 30
SETTINGS = (
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "deterministic"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_tf32"),
    (torch.utils.deterministic, "fill_uninitialized_memory"),
)


def keys(recipe: Recipe) -> set[str]:
    cell = Cell(small_network()[0], "0" * 64, "1" * 64, recipe)
    return {job.key for job in plan([cell], lambda _: None).jobs}


def test_auto_is_a_gpu_where_there_is_one_and_else_what_it_always_was() -> None:
    auto = Recipe(capacity="data-dependent")
    assert auto.device is Device.AUTO
    assert auto.on(True).device is Device.CUDA
    assert auto.on(False).device is Device.CPU
    for device in ("cpu", "cuda"):
        given = Recipe(device=device)
        assert given.on(True) is given.on(False) is given
    assert auto.digest == auto.on(False).digest != auto.on(True).digest
    assert auto.on(True).digest == Recipe(capacity="data-dependent", device="cuda").digest
    assert keys(auto) == keys(auto.on(False))
    assert keys(auto) != keys(auto.on(True))


def test_what_bounds_memory_of_the_host_goes_with_it() -> None:
    auto = Recipe(activation_memory=1)
    assert auto.activation_bytes == auto.on(False).activation_bytes == GIB
    assert auto.on(True).activation_bytes is None
    assert Request(checkpoint="net.pt2", recipe=auto).on(True).recipe == auto.on(True)


def test_torch_is_told_to_sum_in_one_order_and_forgets_it_again() -> None:
    before = [getattr(owner, name) for owner, name in SETTINGS]
    with contextlib.suppress(KeyError), reproducible("cuda"):
        assert [getattr(o, n) for o, n in SETTINGS] == [False, True, False, False, False]
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        raise KeyError
    assert [getattr(owner, name) for owner, name in SETTINGS] == before
    assert not torch.are_deterministic_algorithms_enabled()
    with reproducible("cpu"):
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("nodes", "blind", "found"),
    [([{"CPU": 8.0}], "", False), ([{"GPU": 1.0}], "", True), ([{"GPU": 1.0}], "n0", False)],
)
def test_a_cluster_has_a_gpu_if_torch_finds_it_on_each_node_that_has_one(
    nodes: list[dict[str, float]],
    blind: str,
    found: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = [
        {"Alive": True, "Resources": node, "NodeManagerAddress": f"n{index}"}
        for index, node in enumerate(nodes)
    ]
    monkeypatch.setattr(ray, "nodes", lambda: told)
    context = SimpleNamespace(get_job_id=lambda: "01")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(gpus, "_found", lambda node: node["NodeManagerAddress"] != blind)
    gpus._asked.cache_clear()
    assert gpus.has_gpu() is found
    assert ("the GPU of n0 is not used" in caplog.text) is bool(blind)


def test_a_job_keeps_to_its_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []
    card = SimpleNamespace(total_memory=16 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", taken.append)
    gpus.keep_to_share(0.5)
    gpus.keep_to_share(0.01)
    gpus.keep_to_share(1.0)
    assert taken == [0.5 - 1 / 32, 0.01]


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_card_without_memory_is_told_as_the_host_is(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Any:
        raise error

    worker = SimpleNamespace(idle=SimpleNamespace(busy=contextlib.nullcontext))
    monkeypatch.setattr(ray_jobs, "_worker", lambda store: worker)
    monkeypatch.setattr(ray_jobs, "_compute", fails)
    with pytest.raises(ray_jobs.OutOfMemory, match="CUDA"):
        ray_jobs._run_jobs([job("cpu")], None, None)  # type: ignore[arg-type]


def job(device: str, memory: int = 0) -> Job:
    work = EvaluateFull(threads=1, device=device)
    return Job(work, {}, label="qdrop W2A4 block", room=Room(memory=memory))


def test_a_job_that_had_a_whole_gpu_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"CPU": 8.0, "GPU": 1.0, GPU_MEMORY: 16.0 * GIB}]
    monkeypatch.setattr(ray_resources, "_nodes", lambda: nodes)
    started: list[int] = []
    progress: Any = SimpleNamespace(note=lambda line: None)
    tasks = RayTasks(None, None, progress)  # type: ignore[arg-type]
    monkeypatch.setattr(tasks, "start", lambda batch, growth: started.append(growth))
    assert tasks._grow(_Try((job("cuda", 4 * GIB),), 1)) is None
    assert started == [2]
    refused = tasks._grow(_Try((job("cuda", 4 * GIB),), 4))
    assert isinstance(refused, ModcapError)
    assert "activation_memory" not in str(refused)
    assert "on a whole GPU" in str(tasks._grow(_Try((job("cuda", 16 * GIB),), 1)))
    assert started == [2]


def test_evaluation_goes_to_a_gpu_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = small_network()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="torch finds no GPU here"):
        device_here(Device.CUDA)
    assert device_here(Device.AUTO) == device_here(Device.CPU) == "cpu"
    with pretend_gpu():
        assert device_here(Device.AUTO) == device_here(Device.CUDA) == "cuda"
        assert device_here(Device.CPU) == "cpu"
        there = placed(network, "cuda")(x)
    assert there.device.type == "cpu"
    assert torch.equal(there, network(x))

    def session(images: torch.Tensor) -> torch.Tensor:
        return images

    assert placed(session, "cuda") is session
