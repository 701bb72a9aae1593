"""Assemble jobs: the artifact of a quantized network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from modcap.core.named import sparse
from modcap.core.serialization import Result
from modcap.export import artifact
from modcap.jobs.job import Cell, Job, Progress, Work
from modcap.jobs.worker_cache import WorkerCache
from modcap.quantization.bits import Bits
from modcap.quantization.scheme import Scheme

__all__ = ["Assemble", "assemble_job"]


class Assemble(Work):
    """Packs what the jobs before it left.

    Attributes:
        bits: of each weight layer of each module.
        preprocess, classes: what the artifact says of images and logits, where that is known.
    """

    kind: ClassVar[str] = "assemble"

    bits: tuple[tuple[Bits, ...], ...]
    scheme: Scheme = sparse(Scheme())
    preprocess: str = sparse("")
    classes: tuple[str, ...] = sparse(())

    def run(
        self, job: Job, cache: WorkerCache, needs: Sequence[Result], progress: Progress | None
    ) -> Result:
        states: dict[str, Tensor] = {}
        for result in needs:
            states |= {n: t for n, t in result.tensors.items() if n != "curve"}
        network = cache.network(job.inputs["network"])
        data = artifact.pack_network(
            network, states, self.bits, self.scheme, self.preprocess, self.classes
        )
        packed = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        meta = {"artifact": hashlib.sha256(data).hexdigest(), "artifact_bytes": len(data)}
        return Result({"artifact": packed}, meta)


def assemble_job(cell: Cell, needs: tuple[str, ...]) -> Job:
    """``needs`` hold the state of every module."""
    work = Assemble(
        bits=tuple(map(tuple, cell.bits)),
        scheme=cell.recipe.scheme,
        preprocess=cell.known.preprocess,
        classes=cell.known.classes,
    )
    return Job(work, cell.inputs(), needs, label=f"assemble {cell.name}")
