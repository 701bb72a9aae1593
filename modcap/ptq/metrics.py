"""Metrics: how good a quantized network is. A new one is a function here and an entry of
:data:`METRICS`.

Reconstruction needs no labels, and neither do most of these: without them, what full precision
answers is what is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from modcap.core.errors import InputError
from modcap.data.image_set import ImageSet
from modcap.graph.outputs import Output
from modcap.ptq.measured import TOP1, Scale
from modcap.ptq.metric_name import HOW, MetricName
from modcap.ptq.relative_error import RelativeError
from modcap.ptq.user_metric import UserMetric

__all__ = ["METRICS", "Metric", "Rows", "chosen_metric", "default_metric", "predictions", "top1"]

Rows = Callable[[Tensor], Tensor]
"""A network, from images (N, C, H, W) to one tensor with a row for each."""

_TESTED = 250  # images at once, at most
_INPUT = 16 << 20  # bytes of these, where no more is known


class _Measure(Protocol):
    def __call__(
        self, network: Rows, full: Rows, images: ImageSet, device: str, batch: int | None
    ) -> float: ...


@dataclass(frozen=True)
class Metric:
    """What is measured of a network.

    Attributes:
        name: in recipes and reports.
        title: in tables, with its unit.
        higher_is_better: otherwise less is.
        measure: its value for ``network``, beside the network in full precision; ``batch`` images
            at once, at most 250, or by their size where it is None.
        ideal: its value for full precision itself, where that is known beforehand.
    """

    name: str
    title: str
    higher_is_better: bool
    measure: _Measure
    ideal: float | None = None

    @property
    def scale(self) -> Scale:
        """What its figures are measured in."""
        return Scale(self.name, self.title, self.higher_is_better)


@torch.no_grad()
def predictions(
    network: Rows, images: ImageSet, device: str = "cpu", batch: int | None = None
) -> Tensor:
    """The class of the largest logit of each image: (N,) int64.

    Args:
        network: gives logits (N, classes).
        images: with labels.
        device: where the network is.
        batch: images at once, at most 250; None goes by their size.

    Raises:
        InputError: there are no images, or labels of no class.
    """
    images.check_labels(network(images.normalized(0, 1).to(device)).shape[1])
    return torch.cat([network(x.to(device)).argmax(1).cpu() for x in _batches(images, batch)])


def top1(network: Rows, images: ImageSet, device: str = "cpu", batch: int | None = None) -> float:
    """Percentage of images whose largest logit is their label's; see :func:`predictions`."""
    found = predictions(network, images, device, batch)
    assert images.labels is not None  # else there were no predictions
    return 100 * int((found == images.labels).sum()) / len(images)


def _batches(images: ImageSet, batch: int | None) -> Iterator[Tensor]:
    return images.batches(min(_TESTED, batch or max(1, _INPUT // images.image_bytes)))


def _top1(network: Rows, full: Rows, images: ImageSet, device: str, batch: int | None) -> float:
    return top1(network, images, device, batch)


@torch.no_grad()
def _agreement(
    network: Rows, full: Rows, images: ImageSet, device: str, batch: int | None
) -> float:
    """Percentage of images, or of positions of maps (N, classes, ...), whose largest value is at
    the class where it is in full precision."""
    same = of = 0
    for x in _batches(images, batch):
        x = x.to(device)
        equal = network(x).argmax(1) == full(x).argmax(1)
        same, of = same + int(equal.sum()), of + equal.numel()
    return 100 * same / of


@torch.no_grad()
def _error(network: Rows, full: Rows, images: ImageSet, device: str, batch: int | None) -> float:
    """||y_q - y||^2 / ||y||^2 of all outputs, beside full precision."""
    error = RelativeError()
    for x in _batches(images, batch):
        x = x.to(device)
        error.add(network(x), full(x))
    return error.value


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(TOP1, "top-1 %", True, _top1),
        Metric("agreement", "agreement %", True, _agreement, 100.0),
        Metric("error", "relative error", False, _error, 0.0),
    )
}


def default_metric(outputs: int, shape: Sequence[int], images: ImageSet) -> Metric:
    """Top-1 of a classifier with labels; else agreement where there are classes to agree on.

    Args:
        outputs: how many a network has, where these are several.
        shape: of its rows (N, ...), see :data:`Rows`.
        images: that it is measured on.
    """
    classes = _has_classes(outputs, shape)
    if classes and len(shape) == 2 and images.labels is not None and images.labels.ndim == 1:
        return METRICS[TOP1]
    return METRICS["agreement" if classes else "error"]


def _has_classes(outputs: int, shape: Sequence[int]) -> bool:
    return not outputs and shape[1] > 1


def chosen_metric(
    name: MetricName, outputs: Sequence[Output], shape: Sequence[int], images: ImageSet
) -> Metric:
    """The metric that is asked for, or the one that fits.

    Args:
        name: as it is asked for.
        outputs: of the network, where these are several.
        shape: of its rows (N, ...), see :data:`Rows`.
        images: that it is measured on.

    Raises:
        InputError: it does not fit network or images; or it is the user's, and is not there.
    """
    if not name.name:
        return default_metric(len(outputs), shape, images)
    if name.of_user:
        own = UserMetric(name, outputs)
        return Metric(name.name, own.title, own.higher_is_better, own.measure)
    if name.name != "error" and not _has_classes(len(outputs), shape):
        raise InputError(
            f"--metric {name.name} compares classes, and the network returns "
            f"{f'{len(outputs)} outputs' if outputs else 'none'}: {HOW.replace(TOP1 + ', ', '')}"
        )
    if name.name == TOP1 and len(shape) != 2:
        raise InputError(
            f"--metric top1 needs logits (N, classes), and the network returns maps "
            f"{tuple(shape[1:])}: take agreement, error, or package.module:function"
        )
    return METRICS[name.name]
