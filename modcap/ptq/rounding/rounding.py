"""What a way of rounding is: settings, and the variables that learn a layer's integers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from modcap.core.named import Named

if TYPE_CHECKING:  # settings are read without waiting for torch
    from torch import Tensor

    from modcap.quantization.layers import LearnedIntegers, QuantLayer

__all__ = ["Rounding"]


class Rounding(Named):
    """How weights learn which integers they become.

    A subclass has a field ``rate`` (of learning) and whatever else it needs;
    :mod:`modcap.ptq.rounding` lists it.

    Attributes:
        starts_anywhere: whether integers may be any before they learn, not only the two beside a
            weight.
    """

    starts_anywhere: ClassVar[bool] = False

    @abstractmethod
    def start(self, layer: QuantLayer, weight: Tensor) -> LearnedIntegers:
        """Variables for the integers of ``layer``, close to ``weight``.

        Args:
            layer: its scale is searched; it may be hard already.
            weight: in full precision, of the layer's shape.
        """

    @abstractmethod
    def learning_rate(self, layer: QuantLayer) -> float:
        """Of the variables of ``layer``, at the first step."""

    @property
    @abstractmethod
    def decays(self) -> bool:
        """Whether the learning rate falls to 0 by a cosine."""

    def for_network(self, depthwise: int) -> Rounding:
        """The settings for a network whose largest depthwise kernel has so many rows, 0 where there
        is none: some are published for families of networks."""
        return self

    def penalty(self, integers: Sequence[LearnedIntegers]) -> Tensor | None:
        """What the loss gets added for ``integers``, after a forward pass; None is nothing."""
        return None

    def step(self, integers: Sequence[LearnedIntegers], done: float) -> None:
        """Before each forward pass: ``done`` is the share of steps that lie behind."""
        return
