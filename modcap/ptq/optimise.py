"""The optimisation of a group of modules: Adam on all that learns, over batches of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from modcap.core.errors import ModcapError
from modcap.graph.channels import channel_dimension
from modcap.graph.forward import Passes, run
from modcap.ptq.methods import Method
from modcap.ptq.settings import Optimiser, Precision
from modcap.quantization.insert import layers_of, quantizers
from modcap.quantization.layers import LearnedIntegers, QuantLayer

__all__ = ["Diverged", "Inputs", "Progress", "optimise", "sample_of"]

Progress = Callable[[int, int, float], None]
"""Called with (step, steps, reconstruction loss) now and then."""

_REPORTS = 50  # points of a loss curve
_SAMPLE = 64  # images that ranges and sizes are measured on
_EPS = 1e-8  # of Adam, where the squared output is 1 or more: gradients shrink as that does
_LARGEST_STEP = 1e-2  # of an activation's scale, relative to it


class Diverged(ModcapError):
    """The loss of an optimisation is no number any more."""


@dataclass(frozen=True)
class Inputs:
    """What a group sees: its input behind the quantized prefix, and in full precision, and the
    full-precision output it should reproduce. Each (N, ...), float32."""

    quantized: Tensor
    full: Tensor
    target: Tensor


def sample_of(x: Tensor, passes: Passes) -> Tensor:
    """A few of the images x (N, ...), from all over."""
    count = min(_SAMPLE, passes.images)
    return x[:: max(1, len(x) // count)][:count]


def optimise(
    modules: Sequence[nn.Module],
    inputs: Inputs,
    method: Method,
    settings: Optimiser,
    seed: int,
    progress: Progress | None,
    passes: Passes | None = None,
) -> Tensor:
    """Trains what learns in ``modules``; returns the loss over steps (points, 2).

    Their integers learn where :meth:`modcap.ptq.rounding.Rounding.start` made variables of them;
    scales and biases do where ``settings`` give them a rate.

    Raises:
        Diverged: the loss is no number any more.
    """
    passes = passes or Passes()
    generator = torch.Generator(inputs.target.device).manual_seed(seed)
    group = _Group(modules, method, settings)
    group.begin(generator)
    parameters = group.parameter_groups(sample_of(inputs.full, passes))
    group.channels = channel_dimension(modules, inputs.full[:1])
    energy = float(sample_of(inputs.target, passes).square().sum(group.channels).mean())
    optimizer = torch.optim.Adam(parameters, eps=_EPS * min(1.0, max(energy, _EPS)), fused=True)
    curve: list[tuple[int, float]] = []
    for step in range(settings.iterations):
        done = step / settings.iterations
        for place in optimizer.param_groups:
            if place["decays"]:
                place["lr"] = place["rate"] * 0.5 * (1 + math.cos(math.pi * done))
        index = _drawn(inputs, settings.batch_size, generator)
        settings.rounding.step(group.integers, done)
        optimizer.zero_grad(set_to_none=True)
        loss = group.add_gradients(inputs, index, generator, passes.gradients)
        optimizer.step()
        if step % max(1, settings.iterations // _REPORTS) == 0 or step == settings.iterations - 1:
            curve.append((step, loss))
            _check_finite(*curve[-1])
            if progress is not None:
                progress(step + 1, settings.iterations, curve[-1][1])
    group.finish()
    return torch.tensor(curve, dtype=torch.float64).reshape(-1, 2)


def _check_finite(step: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise Diverged(
            f"the loss is {loss} after {step} steps: are weights and images finite, and learning "
            "rates no larger than in the presets?"
        )


def _drawn(inputs: Inputs, size: int, generator: torch.Generator) -> Tensor:
    """The images of a step (batch,)."""
    count, device = len(inputs.target), inputs.target.device
    return torch.randperm(count, generator=generator, device=device)[: min(size, count)]


class _Group:
    """What learns in a group, and its forward pass."""

    def __init__(self, modules: Sequence[nn.Module], method: Method, settings: Optimiser) -> None:
        self.modules, self.layers = modules, layers_of(modules)
        self.activations = [x for module in modules for x in quantizers(module)[1].values()]
        self.method, self.settings = method, settings
        self.channels = 1  # the dimension of the output that counts them

    @property
    def integers(self) -> list[LearnedIntegers]:
        return [x.learned_integers for x in self.layers if x.learned_integers is not None]

    def begin(self, generator: torch.Generator) -> None:
        self.method.begin(self.activations, generator)
        for quantizer in self.activations:
            quantizer.scale.requires_grad_(self._scales_learn)
        for layer in self.layers:
            if self.settings.weight_scale_rate:
                layer.learn_scales()
            if self.settings.bias_rate:
                layer.learn_bias()

    @property
    def _scales_learn(self) -> bool:
        return self.settings.scale_rate > 0 and self.method.quantizes_activations

    def finish(self) -> None:
        for quantizer in self.activations:
            quantizer.enabled, quantizer.quantize_probability = True, 1.0
            quantizer.generator = None
            quantizer.settle()

    @torch.no_grad()
    def output_sizes(self, x: Tensor) -> dict[QuantLayer, float]:
        """The root mean square of what each layer gives for x (N, ...)."""
        sizes: dict[QuantLayer, float] = {}

        def note(layer: nn.Module, _: object, y: Tensor) -> None:
            sizes[cast(QuantLayer, layer)] = float(y.double().square().mean().sqrt())

        handles = [layer.register_forward_hook(note) for layer in self.layers]
        self.forward(x)
        for handle in handles:
            handle.remove()
        return sizes

    def parameter_groups(self, x: Tensor) -> list[dict[str, Any]]:
        """What learns, and how fast; rates of biases are relative to what their layers give for x,
        since the units of activations are a matter of the network."""
        s = self.settings
        groups: list[dict[str, Any]] = []

        def learn(variable: nn.Parameter | None, rate: float, decays: bool = True) -> None:
            if variable is not None:
                groups.append({"params": [variable], "lr": rate, "rate": rate, "decays": decays})

        for layer in self.layers:
            if layer.learned_integers is not None:
                rate = s.rounding.learning_rate(layer)
                learn(layer.learned_integers.variable, rate, s.rounding.decays)
            learn(layer.log_scale_offset, s.weight_scale_rate)
        if s.bias_rate:
            for layer, size in self.output_sizes(x).items():
                learn(layer.bias, s.bias_rate * size)
        if self._scales_learn:
            for quantizer in self.activations:
                scale = float(quantizer.scale.detach())
                absolute = min(s.scale_rate, _LARGEST_STEP * scale)
                learn(quantizer.scale, s.scale_rate * scale if s.relative_scale_rate else absolute)
        return groups

    def add_gradients(
        self, inputs: Inputs, index: Tensor, generator: torch.Generator, size: int | None
    ) -> float:
        """Adds the gradients of a step on the images ``index``, ``size`` of which go through the
        group at once; returns the loss of reconstruction."""
        total = 0.0
        parts = index.split(size or len(index))
        for number, part in enumerate(parts, 1):
            x = self.method.group_input(inputs.quantized, inputs.full, part, generator)
            loss = (self.forward(x) - inputs.target[part]).square().sum(self.channels).mean()
            if len(parts) > 1:
                loss = loss * (len(part) / len(index))
            total += float(loss.detach())
            penalty = self.settings.rounding.penalty(self.integers)
            if penalty is not None and number == len(parts):  # it counts once
                loss = loss + penalty
            loss.backward()
        return total

    def forward(self, x: Tensor) -> Tensor:
        if self.settings.precision is Precision.FLOAT32:
            return run(self.modules, x)
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return run(self.modules, x).float()
