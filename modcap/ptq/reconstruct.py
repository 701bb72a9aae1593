"""Reconstruction: the rounding of one group, optimised to reproduce its full-precision output.

Minimises, over rounding variables V and activation scales s of all modules of the group,

    mean ||f(x; V, s) - y||^2 + lambda * sum (1 - |2 h(V) - 1|^beta)

(AdaRound eq. 21-24; BRECQ eq. 10; QDrop algorithm 1), with x the group's input behind the
quantized prefix and y its full-precision output. With straight-through rounding V are the weights
themselves, rounded in every step, and nothing is added to the loss. Joining modules makes one sum
with one loss at the end of the group (MRECG, section 3.3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn

from modcap.graph.forward import Passes, channels_last, run_batched
from modcap.ptq.layerwise import round_layerwise
from modcap.ptq.methods import Method
from modcap.ptq.optimise import Inputs, Progress, optimise, sample_of
from modcap.ptq.relative_error import relative_error
from modcap.ptq.settings import Optimiser, RoundingStart
from modcap.quantization.insert import layers_of, quantizers
from modcap.quantization.layers import ActivationQuantizer

__all__ = ["Outcome", "calibrate", "freeze", "reconstruct"]


@dataclass(frozen=True)
class Outcome:
    """Loss over steps (points, 2) as (step, loss); output (N, ...) and its relative error after
    rounding."""

    curve: Tensor
    output: Tensor
    error: float


@torch.no_grad()
def calibrate(
    modules: Sequence[nn.Module], full: Tensor, p: float, passes: Passes | None = None
) -> None:
    """Searches the scales of weights, and of activations on full-precision values (N, ...)."""
    x = sample_of(full, passes or Passes())
    for module in modules:
        layers, activations = quantizers(module)
        graph = cast(fx.GraphModule, module).graph
        calls = Counter(str(n.target) for n in graph.nodes if n.op == "call_module")
        handles = [
            quantizer.register_forward_pre_hook(_calibrate_on(p, calls[name]))
            for name, quantizer in activations.items()
        ]
        for quantizer in activations.values():
            quantizer.enabled = False
        x = module(x)
        for handle in handles:
            handle.remove()
        for quantizer in activations.values():
            quantizer.enabled = True
        for layer in layers.values():
            layer.calibrate(p)


def _calibrate_on(p: float, calls: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """Calibrates a quantizer when it is called for the last time, on all that it saw."""
    seen: list[Tensor] = []

    def hook(quantizer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(quantizer, ActivationQuantizer)
        if calls == 1:
            quantizer.calibrate(args[0], p)
            return
        seen.append(args[0].flatten().clone())  # what follows may work in place
        if len(seen) == calls:
            quantizer.calibrate(torch.cat(seen), p)

    return hook


def freeze(modules: Sequence[nn.Module]) -> None:
    """Rounds every weight of the group to integers."""
    for layer in layers_of(modules):
        layer.freeze()


def reconstruct(
    modules: Sequence[nn.Module],
    inputs: Inputs,
    method: Method,
    settings: Optimiser,
    seed: int,
    progress: Progress | None = None,
    passes: Passes | None = None,
    start: RoundingStart = RoundingStart.NEAREST,
) -> Outcome:
    """Optimises the calibrated ``modules`` jointly, and freezes them in place.

    Args:
        modules: with quantizers (:func:`modcap.quantization.insert.insert_quantizers`), whose
            scales are searched.
        inputs: see :class:`Inputs`.
        method: what the group sees while it is optimised (:mod:`modcap.ptq.methods`).
        settings: steps, batch size, rounding, rates.
        seed: of batches and drops.
        progress: told of the loss about fifty times.
        passes: how many images go through the group at once; where the output lies.
        start: which integers the optimisation starts from.
    """
    passes = passes or Passes()
    inputs = Inputs(*map(channels_last, (inputs.quantized, inputs.full, inputs.target)))
    curve = torch.zeros((0, 2), dtype=torch.float64)
    weights = {layer: layer.weight.detach() for layer in layers_of(modules)}
    if start is RoundingStart.LAYER_WISE:
        weights = round_layerwise(modules, inputs.quantized, passes)
    if method.learns and settings.iterations and weights:  # else all stay float
        for layer, weight in weights.items():
            layer.learned_integers = settings.rounding.start(layer, weight)
        curve = optimise(modules, inputs, method, settings, seed, progress, passes)
    freeze(modules)
    output = run_batched(modules, inputs.quantized, passes)
    return Outcome(curve, output, relative_error(output, inputs.target, passes.images))
