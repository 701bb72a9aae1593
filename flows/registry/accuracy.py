"""Evaluation of an artifact, or of what was exported of one, outside any plan."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from modcap.checkpoints import checkpoint as checkpoints
from modcap.checkpoints.checkpoint import check_input
from modcap.core.errors import InputError, ModcapError
from modcap.data import sources as data
from modcap.data.classes import check_count, doubt
from modcap.data.doubts import doubt_of_pixels, doubt_of_size
from modcap.data.image_set import ImageSet
from modcap.data.preprocess import Preprocess
from modcap.flows.registry.evaluated import Evaluated, evaluated_at
from modcap.flows.registry.figures import Figures, figures_of, metric_for
from modcap.flows.registry.placed import device_here, placed
from modcap.flows.registry.stored_network import stored_network
from modcap.flows.requests.local_path import local_path
from modcap.flows.requests.request_images import (
    classes_of,
    evaluation_images,
    images_of,
    measured,
    pool_of,
)
from modcap.graph.network import build
from modcap.graph.outputs import Output, join_values, outputs_of
from modcap.ptq.measured import TOP1, USUAL, Scale
from modcap.ptq.metrics import predictions
from modcap.recipe import Device
from modcap.tasks.storage.store import Store

__all__ = ["evaluate_artifact"]

_RUNS = 20  # that latency is the median of


@dataclass(frozen=True)
class Asked:
    """What is measured, of what, and on which images.

    Attributes:
        address: an artifact (a local path, s3:// or models:/), an ONNX file or a pt2 archive.
        data: images; of a source with two splits, those of tests.
        preprocess: by default what the artifact says of itself.
        limit: images, at most.
        classes: a file or folder that names its classes; else the artifact, or the folders of
            ``data``, do.
        checkpoint: full precision, to say how often both agree; that of a registered version is
            known.
        arch: of the checkpoint.
        metric: its name; by default the one that fits.
        device: that measures.
    """

    address: str
    data: str
    preprocess: str | None = None
    limit: int | None = None
    classes: str | None = None
    checkpoint: str | None = None
    arch: str | None = None
    metric: str | None = None
    device: Device = Device.AUTO


def evaluate_artifact(
    address: str,
    spec: str,
    preprocess: str | None,
    limit: int | None,
    classes: str | None = None,
    checkpoint: str | None = None,
    arch: str | None = None,
    metric: str | None = None,
    device: Device = Device.AUTO,
) -> dict[str, Any]:
    """What the metric gives on every image of ``spec``, latency and bytes; see :class:`Asked`."""
    return _Measuring.begun(
        Asked(address, spec, preprocess, limit, classes, checkpoint, arch, metric, device)
    ).report()


@dataclass
class _Measuring:
    asked: Asked
    subject: Evaluated
    transform: Preprocess
    tests: data.Images
    images: ImageSet
    classes: int | None  # that it tells; None where it returns something else than logits
    warnings: list[str]

    @classmethod
    def begun(cls, asked: Asked) -> _Measuring:
        """Reads what is measured, and the images, and checks that they fit each other."""
        subject = evaluated_at(asked.address).on(device_here(asked.device))
        transform = _transform(asked.preprocess, subject, asked.address)
        own = subject.known.classes or None
        named = classes_of(asked.classes) or own
        tests = evaluation_images(asked.data, transform, asked.limit, named)
        images = images_of(tests, transform)
        if not len(images):
            raise InputError(f"data {asked.data}: there are no images: give some to measure on")
        outputs = check_input(subject.checked, images.normalized(0, 2))
        if outputs is not None:
            check_count(tests.classes, outputs, f"data {asked.data}")
        warnings = [*filter(None, _doubts(tests, transform, named, own))]
        return cls(asked, subject, transform, tests, images, outputs, warnings)

    def report(self) -> dict[str, Any]:
        full = self._full_precision()
        rows = self.subject.rows
        metric = metric_for(self.asked.metric, rows, self._outputs(), self.images)
        if metric.name == TOP1:
            measured_ = self._top1(full)
        elif full is None:
            raise InputError(
                f"{metric.name.rpartition(':')[2]} is measured beside full precision, which is not "
                f"at hand: give --checkpoint FILE, or {'' if self._labelled else 'labels and '}"
                f"--metric top1"
            )
        else:
            measured_ = _figures(figures_of(metric, rows, full.rows, self.images))
            if rest := self._rest():
                held_out = self.images.first(rest)
                value = metric.measure(rows, full.rows, held_out, "cpu", None)
                measured_ |= self._said_of_rest(metric.scale, value, rest)
        return {
            "artifact": self.asked.address,
            **measured_,
            "images": len(self.images),
            "measured": measured(self.tests, self.asked.data),
            "latency_ms": _latency(self.subject.model, self.images),
            "bytes": self.subject.bytes,
            "device": self.subject.device,
            "warnings": self.warnings,
        }

    @property
    def _labelled(self) -> bool:
        return self.images.labels is not None

    @torch.no_grad()
    def _outputs(self) -> Sequence[Output]:
        return outputs_of(self.subject.model(self.images.normalized(0, 1)))

    def _top1(self, full: _Full | None) -> dict[str, Any]:
        """Of what was measured, and of full precision where that is at hand."""
        found = predictions(self.subject.rows, self.images)
        assert self.images.labels is not None  # else there were no predictions
        hits = found == self.images.labels
        said: dict[str, Any] = {**USUAL.fields, **USUAL.figures(_share(hits))}
        if full is not None:
            exact = predictions(full.rows, self.images)
            said |= USUAL.figures(_share(exact == self.images.labels), "fp_")
            said["agreement"] = _share(exact == found)
        return said | self._held_out(hits)

    def _full_precision(self) -> _Full | None:
        """None where it is not at hand, which is said where it should be."""
        try:
            full = _full_precision(self.subject, self.asked, self.images, self.classes)
            return None if full is None else _Full(placed(full.model, self.subject.device))
        except ModcapError as error:
            if self.asked.checkpoint is not None:
                raise
            self.warnings.append(f"full precision is not at hand: {error}")
            return None

    def _rest(self) -> int:
        """How many images the other commands measure, where calibration drew from the same place;
        else 0."""
        drawn, tests = self.subject.known.digests.get("data_digest"), self.tests
        if not (tests.aside and drawn and len(tests) > tests.aside):
            return 0
        pool = pool_of(self.asked.data, self.transform, tests.classes).digest
        return len(tests) - tests.aside if pool == drawn else 0

    def _held_out(self, hits: Tensor) -> dict[str, Any]:
        """Top-1 of those."""
        rest = self._rest()
        return self._said_of_rest(USUAL, _share(hits[:rest]), rest) if rest else {}

    def _said_of_rest(self, scale: Scale, value: float, rest: int) -> dict[str, Any]:
        self.warnings.append(
            f"calibration drew from {self.asked.data}, and {self.tests.aside:,} of its images were "
            f"set aside for it: on the other {rest:,}, which quantize and promote measure, "
            f"{scale.words} is {scale.said(value)}"
        )
        return {**scale.figures(value, "held_out_"), "held_out_images": rest}


def _figures(found: Figures) -> dict[str, Any]:
    said = {
        **found.scale.fields,
        **found.scale.figures(found.value),
        **found.scale.figures(found.full, "fp_"),
        "drop": found.lost,
    }
    return said | ({"agreement": found.value} if found.scale.metric == "agreement" else {})


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


@dataclass(frozen=True)
class _Full:
    """The network in full precision."""

    model: Callable[[Tensor], Any]

    def rows(self, images: Tensor) -> Tensor:
        joined: Tensor = join_values(self.model(images))
        return joined


def _full_precision(
    subject: Evaluated, asked: Asked, images: ImageSet, classes: int | None
) -> _Full | None:
    if asked.checkpoint is not None:
        model = checkpoints.load(local_path(asked.checkpoint), asked.arch).model
        two = images.normalized(0, 2)
        own = check_input(model, two)
        if own != classes:
            raise InputError(
                f"checkpoint {asked.checkpoint} tells {own or 'no'} classes, and what is measured "
                f"{classes or 'none'}: give the one that it was made from"
            )
        if isinstance(model, ExportedProgram):  # which may be for one number of images
            return _Full(build(model, two))
        return _Full(model)
    if not subject.stored_network:
        return None
    return _Full(stored_network(subject.stored_network, Store.from_environment()))


def _share(hits: Tensor) -> float:
    """In percent."""
    return 100 * int(hits.sum()) / len(hits)


@torch.no_grad()
def _latency(model: Callable[[Tensor], Any], images: ImageSet) -> float:
    """Of one image, in milliseconds: the median of a few runs."""
    image = images.normalized(0, 1)
    seconds = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        model(image)
        seconds.append(time.perf_counter() - start)
    return round(1000 * statistics.median(seconds), 3)
