"""What a network gives by a metric, beside full precision, outside any plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from modcap.data.image_set import ImageSet
from modcap.graph.outputs import Output
from modcap.ptq.measured import TOP1, Scale
from modcap.ptq.metric_name import MetricName
from modcap.ptq.metrics import Metric, Rows, chosen_metric
from modcap.ptq.user_metric import with_code

__all__ = ["Figures", "figures_of", "metric_for"]


@dataclass(frozen=True)
class Figures:
    """The figure of a network, and that of full precision."""

    scale: Scale
    value: float
    full: float

    @property
    def lost(self) -> float:
        return self.scale.lost(self.full, self.value)

    @property
    def is_top1(self) -> bool:
        return self.scale.metric == TOP1


@torch.no_grad()
def metric_for(
    asked: str | None, rows: Rows, outputs: Sequence[Output], images: ImageSet
) -> Metric:
    """The metric that is asked for, or fits a network and the images it is measured on.

    Args:
        asked: its name; None for the one that fits.
        rows: what the network returns, as one tensor.
        outputs: what tells several outputs apart.
        images: to measure on.

    Raises:
        InputError: it fits them not, or wants labels and there are none.
    """
    name = with_code(MetricName(name=asked or ""))
    shape = rows(images.normalized(0, 1)).shape
    metric = chosen_metric(name, outputs, shape, images)
    if metric.name == TOP1:
        images.check_labels(shape[1])
    return metric


def figures_of(metric: Metric, rows: Rows, full: Rows, images: ImageSet) -> Figures:
    """What the metric gives for a network, and for the one in full precision."""
    exact = metric.ideal
    if exact is None:
        exact = metric.measure(full, full, images, "cpu", None)
    return Figures(metric.scale, metric.measure(rows, full, images, "cpu", None), exact)
