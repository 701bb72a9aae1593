"""Sensitivity: what it costs to quantize one layer alone, measured without labels.

A layer is rounded to nearest, and its input quantized, behind and before full precision; the
relative error of the network's output is its sensitivity at that width. Errors of layers are small
and nearly independent of each other, so those of many layers together are nearly their sum
(*Zhou et al., Adaptive Quantization for Deep Neural Network*, AAAI 2018), which makes the choice of
all widths an integer programme (:mod:`modcap.ptq.bit_allocation`).

How often the answer changes grows with that error. The layers measured show how: a monotone line
through their points says what a sum of errors will do (:class:`Disagreements`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from modcap.graph.forward import Passes, run_batched
from modcap.graph.nodes import weight_layers
from modcap.ptq.reconstruct import calibrate, freeze
from modcap.ptq.relative_error import relative_error
from modcap.quantization.bits import FLOAT, Bits
from modcap.quantization.insert import insert_quantizers, quantizers
from modcap.quantization.layers import ActivationQuantizer
from modcap.quantization.scheme import USUAL, Scheme

__all__ = ["Disagreements", "Sensitivity", "sensitivities"]

_WORST = 1e6  # in the place of errors that are no numbers


@dataclass(frozen=True)
class Sensitivity:
    """Of one layer at one width: the relative error of the output, and the share of images (or of
    positions of maps) whose largest output is another than in full precision; None without classes.
    """

    error: float
    disagreement: float | None


@torch.no_grad()
def sensitivities(
    modules: Sequence[fx.GraphModule],
    layer: int,
    widths: Sequence[int],
    activation: int,
    x: Tensor,
    target: Tensor,
    p: float,
    scheme: Scheme = USUAL,
    passes: Passes | None = None,
) -> list[Sensitivity]:
    """The sensitivity of one layer at each of ``widths``.

    Args:
        modules: in full precision, from the one with the layer to the last.
        layer: its number in the first of these.
        widths: bits of its weights.
        activation: bits of its input; 0 stays float.
        x: full-precision input of ``modules`` (N, ...).
        target: their full-precision output (N, ...).
        p: exponent of the search for scales.
        scheme: on which grids.
        passes: how many images go through the modules at once.
    """
    found: list[Sensitivity] = []
    inputs: dict[str, ActivationQuantizer] = {}
    for width in widths:
        alone = [FLOAT] * len(weight_layers(modules[0]))
        alone[layer] = Bits(width, activation)
        quantized = insert_quantizers(modules[0], alone, scheme)
        layers, activations = quantizers(quantized)
        if found:  # the input is the same
            for name, quantizer in activations.items():
                quantizer.set(inputs[name].scale, inputs[name].zero_point)
            for each in layers.values():
                each.calibrate(p)
        else:
            calibrate([quantized], x, p, passes)
            inputs = activations
        freeze([quantized])
        output = run_batched([quantized, *modules[1:]], x, passes)
        found.append(_compared(output, target, (passes or Passes()).images))
    return found


def _compared(output: Tensor, target: Tensor, images: int) -> Sensitivity:
    error = relative_error(output, target, images)
    error = min(error, _WORST) if math.isfinite(error) else _WORST
    if target.shape[1] == 1:
        return Sensitivity(error, None)
    changed = (output.argmax(1) != target.argmax(1)).double().mean()
    return Sensitivity(error, float(changed))


@dataclass(frozen=True)
class Disagreements:
    """How often the answer changes at which error of the output: errors, ascending, and shares,
    which never fall."""

    errors: tuple[float, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, measured: Sequence[Sensitivity]) -> Disagreements | None:
        """The isotonic regression of what was measured; no error changes nothing. None without
        classes."""
        from scipy.optimize import isotonic_regression

        points = sorted((m.error, m.disagreement) for m in measured if m.disagreement is not None)
        if not points:
            return None
        fitted = isotonic_regression([share for _, share in points]).x
        return cls((0.0, *(error for error, _ in points)), (0.0, *map(float, fitted)))

    def at(self, error: float) -> float:
        """The share that changes at this error; beyond all that was measured, that of the last."""
        import numpy as np

        return float(np.interp(error, self.errors, self.shares))

    def largest_error(self, share: float) -> float:
        """The largest error at which no more than ``share`` changes; infinity where none that was
        measured changes more."""
        above = next((i for i, each in enumerate(self.shares) if each > share), None)
        if above is None:
            return math.inf
        (e0, e1), (s0, s1) = self.errors[above - 1 : above + 1], self.shares[above - 1 : above + 1]
        return e0 + (e1 - e0) * (share - s0) / (s1 - s0)
