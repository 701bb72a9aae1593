"""Evaluation of an artifact, or of what was exported of one, outside any plan."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modcap.checkpoints.checkpoint import check_input
from modcap.checkpoints.export_archive import read as read_pt2
from modcap.core.errors import InputError
from modcap.data.classes import check_count
from modcap.data.image_set import ImageSet
from modcap.data.preprocess import Preprocess
from modcap.export.artifact import unpack_network
from modcap.flows.registry.artifacts import REGISTRY, artifact_at
from modcap.flows.requests.request import classes_of, evaluation_images, images_of, local_path
from modcap.jobs.kinds.evaluate import top1

__all__ = ["evaluate_artifact"]

_RUNS = 20  # that latency is the median of

Model = Callable[[Tensor], Tensor]


def evaluate_artifact(
    address: str,
    spec: str,
    preprocess: str | None,
    limit: int | None,
    classes: str | None = None,
) -> dict[str, Any]:
    """Top-1 on the test images of ``spec``, latency and bytes of an artifact (a local path, s3://
    or models:/), or of an ONNX file or a pt2 archive.

    ``classes`` is a file or folder that names its classes; else the folders of ``spec`` do.
    """
    model, size, known = _model_at(address)
    said = preprocess or known.get("preprocess")
    if said is None:
        raise InputError(
            "--preprocess is missing: an artifact does not know how images were scaled"
        )
    transform = Preprocess.parse(said)
    tests = evaluation_images(spec, transform, limit, classes=classes_of(classes))
    images = images_of(tests, transform)
    check_count(tests.classes, check_input(model, images.normalized(0, 2)), f"data {spec}")
    return {
        "artifact": address,
        "top1": top1(model, images),
        "images": len(images),
        "latency_ms": _latency(model, images),
        "bytes": size,
    }


def _model_at(address: str) -> tuple[Model, int, Mapping[str, str]]:
    suffix = "" if address.startswith(REGISTRY) else Path(address).suffix
    if suffix == ".onnx":
        return _onnx(address)
    if suffix == ".pt2":
        data = _bytes(address)
        return read_pt2(data, address)[0].module(), len(data), {}
    data, tags = artifact_at(address)
    return unpack_network(data), len(data), tags


def _onnx(address: str) -> tuple[Model, int, Mapping[str, str]]:
    from modcap.export import exporter_of
    from modcap.export.onnx_check import session_of

    exporter_of("onnx")
    data = _bytes(address)
    session = session_of(data, address)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        raise InputError(f"{address}: takes {len(inputs)} inputs: give an export of modcap")
    found = session.get_modelmeta().custom_metadata_map.items()
    known = {key.removeprefix("modcap."): value for key, value in found}

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run([outputs[0].name], {inputs[0].name: images.numpy()})
        return torch.from_numpy(logits)

    return run, len(data), known


def _bytes(address: str) -> bytes:
    try:
        return local_path(address).read_bytes()
    except OSError as error:
        raise InputError(f"{address}: cannot be read ({error.strerror})") from None


@torch.no_grad()
def _latency(model: Model, images: ImageSet) -> float:
    """Of one image, in milliseconds: the median of a few runs."""
    image = images.normalized(0, 1)
    seconds = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        model(image)
        seconds.append(time.perf_counter() - start)
    return round(1000 * statistics.median(seconds), 3)
