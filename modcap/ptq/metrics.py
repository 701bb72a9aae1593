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

from modcap.data.image_set import ImageSet

__all__ = ["METRICS", "Metric", "Rows", "default_metric", "predictions", "top1"]

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
    """

    name: str
    title: str
    higher_is_better: bool
    measure: _Measure


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
    away = energy = 0.0
    for x in _batches(images, batch):
        x = x.to(device)
        exact = full(x).double()
        away += float((network(x).double() - exact).square().sum())
        energy += float(exact.square().sum())
    return away / max(energy, 1e-30)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("top1", "top-1 %", True, _top1),
        Metric("agreement", "agreement %", True, _agreement),
        Metric("error", "relative error", False, _error),
    )
}


def default_metric(outputs: int, shape: Sequence[int], images: ImageSet) -> Metric:
    """Top-1 of a classifier with labels; else agreement where there are classes to agree on.

    Args:
        outputs: how many a network has, where these are several.
        shape: of its rows (N, ...), see :data:`Rows`.
        images: that it is measured on.
    """
    classes = not outputs and shape[1] > 1
    if classes and len(shape) == 2 and images.labels is not None:
        return METRICS["top1"]
    return METRICS["agreement" if classes else "error"]
