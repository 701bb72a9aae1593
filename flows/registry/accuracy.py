"""Evaluation of an artifact, or of what was exported of one, outside any plan."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from modcap.checkpoints import checkpoint as checkpoints
from modcap.checkpoints.checkpoint import check_input
from modcap.checkpoints.exported_for import runner
from modcap.core.errors import InputError, ModcapError
from modcap.data import sources as data
from modcap.data.classes import check_count, doubt
from modcap.data.doubts import doubt_of_pixels, doubt_of_size
from modcap.data.image_set import ImageSet
from modcap.data.preprocess import Preprocess
from modcap.flows.registry.evaluated import Evaluated, evaluated_at
from modcap.flows.requests.request import (
    classes_of,
    evaluation_images,
    images_of,
    local_path,
    measured,
    pool_of,
)
from modcap.graph.network import Network
from modcap.ptq.metrics import predictions
from modcap.tasks.storage.store import Store

__all__ = ["evaluate_artifact"]

_RUNS = 20  # that latency is the median of

Model = Callable[[Tensor], Tensor]


def evaluate_artifact(
    address: str,
    spec: str,
    preprocess: str | None,
    limit: int | None,
    classes: str | None = None,
    checkpoint: str | None = None,
    arch: str | None = None,
) -> dict[str, Any]:
    """Top-1 on every image of ``spec``, latency and bytes of an artifact (a local path, s3:// or
    models:/), or of an ONNX file or a pt2 archive.

    Args:
        address: what is measured.
        spec: images; of a source with two splits, those of tests.
        preprocess: by default what the artifact says of itself.
        limit: images, at most.
        classes: a file or folder that names its classes; else the artifact, or the folders of
            ``spec``, do.
        checkpoint: full precision, to say how often both agree; that of a registered version is
            known.
        arch: of the checkpoint.
    """
    subject = evaluated_at(address)
    transform = _transform(preprocess, subject, address)
    own = subject.known.classes or None
    named = classes_of(classes) or own
    tests = evaluation_images(spec, transform, limit, named)
    images = images_of(tests, transform)
    outputs = check_input(subject.checked, images.normalized(0, 2))
    check_count(tests.classes, outputs, f"data {spec}")
    labels = images.check_labels(outputs)
    found = predictions(subject.model, images)
    report: dict[str, Any] = {
        "artifact": address,
        "top1": _share(found == labels),
        "images": len(images),
        "measured": measured(tests, spec),
        "latency_ms": _latency(subject.model, images),
        "bytes": subject.bytes,
        "warnings": [*filter(None, _doubts(tests, transform, named, own))],
    }
    _add_full_precision(report, subject, images, found, checkpoint, arch, outputs)
    _add_held_out(report, subject, tests, spec, transform, found == labels)
    return report


def _doubts(
    tests: data.Images,
    transform: Preprocess,
    named: Sequence[str] | None,
    own: Sequence[str] | None,
) -> Iterator[str | None]:
    """What may be wrong with the images, or their numbers."""
    if named is None:
        yield doubt(tests.classes)
    elif own is not None and list(named) != list(own):
        yield "--classes numbers classes otherwise than the artifact says, and is followed"
    yield doubt_of_pixels(tests, transform)
    yield doubt_of_size(tests, transform)


def _transform(said: str | None, subject: Evaluated, address: str) -> Preprocess:
    if said:
        return Preprocess.parse(said)
    if not subject.known.preprocess:
        raise InputError(f"--preprocess is missing: {address} does not say how images were scaled")
    return Preprocess.written(subject.known.preprocess)


def _add_full_precision(
    report: dict[str, Any],
    subject: Evaluated,
    images: ImageSet,
    found: Tensor,
    checkpoint: str | None,
    arch: str | None,
    outputs: int,
) -> None:
    """How good full precision is, and on how many images both see the same class."""
    try:
        model = _full_precision(subject, checkpoint, arch, images, outputs)
    except ModcapError as error:
        if checkpoint is not None:
            raise
        report["warnings"].append(f"full precision is not at hand: {error}")
        return
    if model is None:
        return
    full = predictions(model, images)
    assert images.labels is not None  # else there were no predictions
    report["fp_top1"] = _share(full == images.labels)
    report["agreement"] = _share(full == found)


def _full_precision(
    subject: Evaluated, checkpoint: str | None, arch: str | None, images: ImageSet, outputs: int
) -> Model | None:
    if checkpoint is not None:
        loaded = checkpoints.load(local_path(checkpoint), arch).model
        own = check_input(loaded, images.normalized(0, 2))
        if own != outputs:
            raise InputError(
                f"checkpoint {checkpoint} tells {own} classes, and what is measured {outputs}: "
                f"give the one that it was made from"
            )
        return runner(loaded) if isinstance(loaded, ExportedProgram) else loaded
    if not subject.stored_network:
        return None
    with TemporaryDirectory() as folder:
        file = Store.from_environment().fetch_input(subject.stored_network, Path(folder))
        return Network.from_bytes(file.read_bytes())


def _add_held_out(
    report: dict[str, Any],
    subject: Evaluated,
    tests: data.Images,
    spec: str,
    transform: Preprocess,
    hits: Tensor,
) -> None:
    """What the other commands measure, where calibration drew from the same place."""
    drawn = subject.known.digests.get("data_digest")
    if not (tests.aside and drawn and len(hits) > tests.aside):
        return
    if pool_of(spec, transform, tests.classes).digest != drawn:
        return
    rest = hits[: len(hits) - tests.aside]
    report |= {"held_out_top1": _share(rest), "held_out_images": len(rest)}
    report["warnings"].append(
        f"calibration drew from {spec}, and {tests.aside:,} of its images were set aside for it: "
        f"on the other {len(rest):,}, which quantize and promote measure, top-1 is "
        f"{report['held_out_top1']:.2f} %"
    )


def _share(hits: Tensor) -> float:
    """In percent."""
    return 100 * int(hits.sum()) / len(hits)


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
