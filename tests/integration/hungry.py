"""Jobs on the stack whose workers run out of memory below a grant."""

from __future__ import annotations

import sys
from pathlib import Path

import ray
import torch
from prefect import flow

from modcap import zoo
from modcap.core.errors import ModcapError
from modcap.flows.execution.attempt import execute_jobs
from modcap.flows.execution.connect import connected
from modcap.flows.execution.progress import Progress
from modcap.flows.quantize import THREADS
from modcap.graph.network import build
from modcap.jobs.job import Job, Room
from modcap.jobs.kinds.capacity import DataFreeCapacity
from modcap.quantization.bits import Bits
from modcap.tasks.storage.store import Store


class Hungry(Store):
    """Shipped to the workers as it is: they have no tests."""

    def fetch_input(self, name: str, folder: Path) -> Path:
        least = int(self.prefix.rpartition("-")[2])
        granted = ray.get_runtime_context().get_assigned_resources().get("memory", 0)
        if granted < least:
            raise MemoryError(f"granted {granted:.0f} bytes")
        return super().fetch_input(name, folder)


@flow(name="hungry", task_runner=THREADS)
def body(least: int) -> None:
    network = build(zoo.resnet18_narrow().eval(), torch.zeros(2, 1, 28, 28))
    with connected() as plain, Progress() as progress:
        store = Hungry(plain.bucket, f"hungry-{least}", plain.endpoint)
        store.upload_input(network.digest, network.to_bytes())
        work = DataFreeCapacity(module=1, bits=(Bits(2, 4),) * 2, alpha=1.6)
        inputs = {"network": network.digest}
        job = Job(work, inputs, label="hungry", room=Room(memory=1 << 28))
        execute_jobs([job], store, progress)
        assert store.get(job.key) is not None


def outcome(least: int) -> str:
    """What becomes of a job that needs a grant of so many bytes."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        body(least)
    except ModcapError as error:
        return f"refused: {error}"
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    return "done"
