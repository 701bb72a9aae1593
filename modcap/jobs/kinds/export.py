"""Export jobs: an artifact as a file in another format, compared with it before it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch

from modcap.core.named import key_fields
from modcap.core.serialization import Result, digest
from modcap.export import Export, Known, exporter_of
from modcap.jobs.cost_model import ModuleTimes, evaluation_memory
from modcap.jobs.job import Cell, Job, Progress, Room, Work
from modcap.jobs.worker_cache import WorkerCache

__all__ = ["WriteExport", "export_job"]

_COMPARED = 8  # images of calibration that the file is compared on, beside random ones
_SECONDS = 3.0  # of a small network


class WriteExport(Work):
    """Writes the file.

    Attributes:
        format: see :data:`modcap.export.EXPORTERS`.
        opset: of ONNX files.
        known: what the file says of where it comes from.
    """

    kind: ClassVar[str] = "export"

    format: str
    opset: int
    known: Known

    def run(
        self, job: Job, cache: WorkerCache, needs: Sequence[Result], progress: Progress | None
    ) -> Result:
        images = cache.images(job.inputs["calibration"]).normalized(0, _COMPARED)
        packed = needs[0].tensors["artifact"].numpy().tobytes()
        export = Export(packed, self.opset, self.known, images)
        data, said = exporter_of(self.format).write(export)
        file = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        meta = {"format": self.format, "bytes": len(data), "sha256": digest(data), **said}
        return Result({"export": file}, meta)

    def seconds(self, times: ModuleTimes) -> float:
        return _SECONDS


def export_job(cell: Cell, assemble: str, format_: str) -> Job:
    """Of what the job ``assemble`` packed."""
    digests = {
        **cell.known.digests,
        "network_digest": cell.network.digest,
        "recipe_digest": cell.recipe.digest,
    }
    recipe = key_fields(cell.recipe)
    known = replace(cell.known, recipe=recipe, digests=digests)
    work = WriteExport(format=format_, opset=Export.opset, known=known)
    room = Room.of(cell.recipe, evaluation_memory(cell.network))
    label = f"export {format_} {cell.name}"
    return Job(work, cell.inputs("calibration"), (assemble,), label, room)
