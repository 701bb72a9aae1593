"""Sensitivity: what it costs to quantize the weights of one layer alone, measured without labels.

They are rounded to nearest, behind and before full precision, and its channels corrected
(:mod:`modcap.ptq.channel_correction`): what that mends, reconstruction mends too. The relative
error of the network's output is the sensitivity of the layer at that width. Errors of layers are
small and nearly independent of each other, so those of many layers together are nearly their sum
(Zhou et al., *Adaptive Quantization for Deep Neural Network*, AAAI 2018), which makes the choice of
all widths an integer programme (:mod:`modcap.ptq.bit_allocation`).

What a sum comes to, activations included, is measured on the whole network at each width. A
monotone line through these few points predicts error and answers of any choice
(:class:`Prediction`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from modcap.graph.forward import Passes, run_batched
from modcap.ptq.channel_correction import IMAGES, correct_module
from modcap.ptq.reconstruct import calibrate, freeze
from modcap.ptq.relative_error import relative_error
from modcap.quantization.bits import Bits
from modcap.quantization.insert import insert_quantizers
from modcap.quantization.scheme import USUAL, Scheme

__all__ = ["Cost", "Prediction", "cost_of_network", "layer_errors"]

_WORST = 1e6  # in the place of errors that are no numbers


@dataclass(frozen=True)
class Cost:
    """What quantization costs: the relative error of the output, and the share of images (or of
    positions of maps) whose largest output is another than in full precision; None without classes.
    """

    error: float
    disagreement: float | None


@torch.no_grad()
def layer_errors(
    modules: Sequence[fx.GraphModule],
    trials: Sequence[Sequence[Bits]],
    x: Tensor,
    target: Tensor,
    p: float,
    scheme: Scheme = USUAL,
    passes: Passes | None = None,
    corrected: int = IMAGES,
) -> list[float]:
    """The relative error of the output in each of ``trials``.

    Args:
        modules: in full precision, from the one that is quantized to the last.
        trials: bits of each weight layer of the first of these.
        x: full-precision input of ``modules`` (N, ...).
        target: their full-precision output (N, ...).
        p: exponent of the search for scales.
        scheme: on which grids.
        passes: how many images go through the modules at once.
        corrected: images that channels are corrected on, at most.
    """
    found = []
    for bits in trials:
        quantized = _rounded(modules[0], bits, x, x, p, scheme, passes, corrected)
        output = run_batched([quantized, *modules[1:]], x, passes)
        found.append(_finite(relative_error(output, target, (passes or Passes()).images)))
    return found


@torch.no_grad()
def cost_of_network(
    modules: Sequence[fx.GraphModule],
    bits: Sequence[Sequence[Bits]],
    x: Tensor,
    target: Tensor,
    p: float,
    scheme: Scheme = USUAL,
    passes: Passes | None = None,
    corrected: Sequence[int] | None = None,
) -> Cost:
    """What it costs to round all of ``modules`` to nearest and to correct their channels; arguments
    as for :func:`layer_errors`, with ``bits`` of each weight layer of each module, and images that
    each is ``corrected`` on."""
    counts = corrected or [IMAGES] * len(modules)
    full = output = x
    for index, (module, widths, count) in enumerate(zip(modules, bits, counts, strict=True)):
        last = index == len(modules) - 1
        quantized = _rounded(module, widths, full, output, p, scheme, passes, count, last)
        output = run_batched([quantized], output, passes)
        full = full if last else run_batched([module], full, passes)
    error = _finite(relative_error(output, target, (passes or Passes()).images))
    if target.shape[1] == 1:
        return Cost(error, None)
    return Cost(error, float((output.argmax(1) != target.argmax(1)).double().mean()))


def _rounded(
    module: fx.GraphModule,
    bits: Sequence[Bits],
    full: Tensor,
    behind: Tensor,
    p: float,
    scheme: Scheme,
    passes: Passes | None,
    corrected: int,
    last: bool = False,
) -> nn.Module:
    """``module`` rounded to nearest, its channels corrected. ``full`` and ``behind`` are its input,
    in full precision and behind the quantized prefix."""
    quantized = insert_quantizers(module, bits, scheme, last)
    calibrate([quantized], full, p, passes)
    freeze([quantized])
    correct_module(module, quantized, full[:corrected], behind[:corrected])
    return quantized


def _finite(error: float) -> float:
    return min(error, _WORST) if math.isfinite(error) else _WORST


@dataclass(frozen=True)
class Prediction:
    """What sums of sensitivities come to: ``sums``, ascending, and what was measured there, made
    monotone."""

    sums: tuple[float, ...]
    errors: tuple[float, ...]
    shares: tuple[float, ...] | None

    @classmethod
    def of(cls, sums: Sequence[float], measured: Sequence[Cost]) -> Prediction:
        """By isotonic regression.

        Args:
            sums: of the sensitivities of all layers, each at the width of a measurement.
            measured: of the whole network.
        """
        points = sorted(zip(sums, measured, strict=True), key=lambda point: point[0])
        shares = [m.disagreement for _, m in points if m.disagreement is not None]
        return cls(
            tuple(total for total, _ in points),
            _monotone([cost.error for _, cost in points]),
            _monotone(shares) if len(shares) == len(points) else None,
        )

    def error(self, total: float) -> float:
        """The relative error of the output at this sum."""
        return float(np.interp(total, self.sums, self.errors))

    def share(self, total: float) -> float | None:
        """The share of answers that change; None without classes."""
        return None if self.shares is None else float(np.interp(total, self.sums, self.shares))

    def largest_sum(self, share: float) -> float:
        """The largest sum at which no more than ``share`` of answers change: -infinity where all
        that was measured changes more, infinity where nothing does."""
        assert self.shares is not None
        above = next((i for i, each in enumerate(self.shares) if each > share), None)
        if above is None:
            return math.inf
        if above == 0:
            return -math.inf
        (x0, x1), (s0, s1) = self.sums[above - 1 : above + 1], self.shares[above - 1 : above + 1]
        return x0 + (x1 - x0) * (share - s0) / (s1 - s0)


def _monotone(values: Sequence[float]) -> tuple[float, ...]:
    from scipy.optimize import isotonic_regression

    return tuple(map(float, isotonic_regression(values).x))
