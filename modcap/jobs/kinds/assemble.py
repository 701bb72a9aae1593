"""Assemble jobs: the artifact of a quantized network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from modcap.core.serialization import Result
from modcap.export import artifact
from modcap.jobs.job import Cell, Job, Progress, Work
from modcap.jobs.worker_cache import WorkerCache
from modcap.quantization.layers import Bits

__all__ = ["Assemble", "assemble_job"]


class Assemble(Work):
    """Packs what the jobs before it left."""

    kind: ClassVar[str] = "assemble"

    bits: tuple[tuple[Bits, ...], ...]

    def run(
        self, job: Job, cache: WorkerCache, needs: Sequence[Result], progress: Progress | None
    ) -> Result:
        states: dict[str, Tensor] = {}
        for result in needs:
            states |= {n: t for n, t in result.tensors.items() if n != "curve"}
        network = cache.network(job.inputs["network"])
        data = artifact.pack_network(network, states, self.bits)
        packed = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        meta = {"artifact": hashlib.sha256(data).hexdigest(), "artifact_bytes": len(data)}
        return Result({"artifact": packed}, meta)


def assemble_job(cell: Cell, needs: tuple[str, ...]) -> Job:
    """``needs`` hold the state of every module."""
    work = Assemble(bits=tuple(map(tuple, cell.bits)))
    return Job(work, cell.inputs(), needs, label=f"assemble {cell.name}")
