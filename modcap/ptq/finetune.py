"""Tuning: the quantized network trained as a whole, on the logits of full precision.

Reconstruction lets each group reproduce its own output; what is left adds up over the depth, above
all where groups did not wait for each other. A few steps through the whole network, on the
distance of its logits from those in full precision, mend most of that. They reach every scale of
weights, every bias and every scale of activations; and the integers: each starts from where its
weight lies in full precision, moved to the edge of what rounds to that integer where reconstruction
chose another one than the nearest, and gradients pass straight through the rounding. No labels are
needed, and the size stays.

EfficientQAT (Chen et al., 2024) trains step sizes end to end like this, after blocks, for language
models; straight-through gradients are those of Bengio et al. (2013).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from modcap.graph.forward import Passes, run_batched
from modcap.ptq.methods import Brecq
from modcap.ptq.optimise import Diverged, Inputs, Progress, optimise
from modcap.ptq.reconstruct import freeze
from modcap.ptq.relative_error import relative_error
from modcap.ptq.rounding import StraightThroughRounding
from modcap.ptq.settings import Optimiser, Precision
from modcap.quantization.insert import quantizers, restore, state_of

__all__ = ["tune"]


def tune(
    floats: Sequence[nn.Module],
    modules: Sequence[nn.Module],
    x: Tensor,
    target: Tensor,
    steps: int,
    rate: float,
    rounding_rate: float,
    batch_size: int,
    seed: int,
    precision: Precision = Precision.FLOAT32,
    progress: Progress | None = None,
    passes: Passes | None = None,
) -> tuple[Tensor, float, float]:
    """Tunes the frozen ``modules`` in place.

    Args:
        floats: the full-precision modules.
        modules: the same, quantized and frozen.
        x: preprocessed images (N, C, H, W).
        target: the logits of full precision on them (N, classes).
        steps: of Adam.
        rate: of learning, by which a scale changes in a step relative to its size, and a bias
            relative to its layer's output; falls to 0.
        rounding_rate: by which a weight moves in a step, in units of the distance between integers,
            in channels of 256 weights or more, in others in proportion; falls to 0. 0 keeps the
            integers.
        batch_size: images per step.
        seed: of batches.
        precision: of the steps.
        progress: told of the loss about fifty times.
        passes: how many images go through the network at once.

    Returns:
        Loss over steps (points, 2); relative error of the output on ``x`` before and after. Where
        that does not fall, the modules are as they were.
    """
    rounding = StraightThroughRounding(rate=rounding_rate) if rounding_rate else None
    passes = passes or Passes()
    before = relative_error(run_batched(modules, x, passes), target, passes.images)
    start = [{n: t.clone() for n, t in state_of(module)} for module in modules]
    for float_module, module in zip(floats, modules, strict=True):
        if rounding is not None:
            for name, layer in quantizers(module)[0].items():
                weight = cast(Tensor, float_module.get_submodule(name).weight).detach()
                layer.learned_integers = rounding.start(layer, weight)
    settings = Optimiser(
        iterations=steps,
        batch_size=batch_size,
        rounding=rounding or StraightThroughRounding(),  # of nothing
        scale_rate=rate,
        relative_scale_rate=True,
        weight_scale_rate=rate,
        bias_rate=rate,
        precision=precision,
    )
    curve, after = torch.zeros((0, 2), dtype=torch.float64), math.inf
    with contextlib.suppress(Diverged):
        inputs = Inputs(x, x, target)
        curve = optimise(modules, inputs, Brecq(), settings, seed, progress, passes)
        freeze(modules)
        after = relative_error(run_batched(modules, x, passes), target, passes.images)
    if not after < before:
        for module, state in zip(modules, start, strict=True):
            restore(module, state)
        after = before
    return curve, before, after
