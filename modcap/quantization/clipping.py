"""What activation quantizers cut off: the range of the values that they saw, and the share outside
of what their levels reach."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modcap.quantization.affine import levels
from modcap.quantization.insert import quantizers
from modcap.quantization.layers import ActivationQuantizer

__all__ = ["Seen", "watching_activations"]


@dataclass
class Seen:
    """The values that one quantizer saw: smallest, largest, how many, how many of them clipped."""

    low: float = 0.0
    high: float = 0.0
    count: int = 0
    clipped: int = 0

    def add(self, values: Tensor, reach: tuple[float, float]) -> None:
        """Counts ``values``; those outside of ``reach`` are clipped."""
        low, high = (float(end) for end in torch.aminmax(values))
        if not self.count:
            self.low, self.high = low, high
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += values.numel()
        self.clipped += int(((values < reach[0]) | (values > reach[1])).sum())

    @property
    def meta(self) -> dict[str, float]:
        """As JSON: ``clipped`` is a share."""
        share = self.clipped / self.count if self.count else 0.0
        return {"low": self.low, "high": self.high, "clipped": round(share, 6)}


def _reach(quantizer: ActivationQuantizer) -> tuple[float, float]:
    """Values that become a level at most half a step away."""
    scale, zero = float(quantizer.scale), float(quantizer.zero_point)
    return (-zero - 0.5) * scale, (levels(quantizer.bits) - zero + 0.5) * scale


@contextlib.contextmanager
def watching_activations(modules: Sequence[nn.Module]) -> Iterator[dict[str, Seen]]:
    """What the activation quantizers of ``modules`` see meanwhile, by ``i.NAME`` as in artifacts.

    Args:
        modules: hard modules with quantizers, in their order.
    """
    found: dict[str, Seen] = {}
    hooks = []
    for index, module in enumerate(modules):
        for name, quantizer in quantizers(module)[1].items():
            seen = found[f"{index}.{name}"] = Seen()
            hooks.append(quantizer.register_forward_pre_hook(_hook(seen, _reach(quantizer))))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _hook(seen: Seen, reach: tuple[float, float]) -> Any:
    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.add(inputs[0], reach)

    return count
