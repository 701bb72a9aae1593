"""The relative error of an output, which tells how good a reconstruction is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from modcap.graph.forward import BATCH

__all__ = ["RelativeError", "relative_error"]


@dataclass
class RelativeError:
    """||output - target||^2 / ||target||^2 of what was added so far."""

    away: float = 0.0
    energy: float = 0.0

    def add(self, output: Tensor, target: Tensor) -> None:
        """Adds tensors (n, ...)."""
        exact = target.double()
        self.away += float((output.double() - exact).square().sum())
        self.energy += float(exact.square().sum())

    @property
    def value(self) -> float:
        return self.away / max(self.energy, 1e-30)


def relative_error(output: Tensor, target: Tensor, images: int = BATCH) -> float:
    """That of tensors (N, ...), a few ``images`` of which are looked at together."""
    error = RelativeError()
    for y, wanted in zip(output.split(images), target.split(images), strict=True):
        error.add(y, wanted)
    return error.value
