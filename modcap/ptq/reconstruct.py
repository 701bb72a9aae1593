"""Reconstruction: the rounding of one group, optimised to reproduce its full-precision output.

Minimises, over rounding variables V and activation scales s of all modules of the group,

    mean ||f(x; V, s) - y||^2 + lambda * sum (1 - |2 h(V) - 1|^beta)

(AdaRound eq. 21-24; BRECQ eq. 10; QDrop algorithm 1), with x the group's input behind the
quantized prefix and y its full-precision output. With straight-through rounding V are the weights
themselves, rounded in every step, and nothing is added to the loss. Joining modules makes one sum
with one loss at the end of the group (MRECG, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from modcap.core.errors import ModcapError
from modcap.graph.forward import channels_last, run, run_batched
from modcap.ptq.relative_error import relative_error
from modcap.quantization.insert import layers_of, quantizers
from modcap.quantization.layers import ActivationQuantizer, QuantLayer, draw
from modcap.recipe import Method, Optimiser, Precision, Rounding

__all__ = [
    "Diverged",
    "Inputs",
    "Outcome",
    "Progress",
    "calibrate",
    "optimise",
    "reconstruct",
]

Progress = Callable[[int, int, float], None]
"""Called with (step, steps, reconstruction loss) now and then."""

_REPORTS = 50  # points of a loss curve
_MANY_WEIGHTS = 256  # of a channel; where there are fewer, each weighs more, and moves more slowly
_OBSERVED = 64  # images an activation's scale is searched on, and the size of outputs measured
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


@dataclass(frozen=True)
class Outcome:
    """Loss over steps (points, 2) as (step, loss); output (N, ...) and its relative error after
    hardening."""

    curve: Tensor
    output: Tensor
    error: float


@torch.no_grad()
def calibrate(modules: Sequence[nn.Module], full: Tensor, p: float) -> None:
    """Searches the scales of weights, and of activations on full-precision values (N, ...)."""
    x = _observed(full)
    for module in modules:
        layers, activations = quantizers(module)
        handles = [q.register_forward_pre_hook(_observe(p)) for q in activations.values()]
        for quantizer in activations.values():
            quantizer.enabled = False
        x = module(x)
        for handle in handles:
            handle.remove()
        for quantizer in activations.values():
            quantizer.enabled = True
        for layer in layers.values():
            layer.calibrate(p)


def _observed(x: Tensor) -> Tensor:
    """A few of the images x (N, ...), from all over."""
    return x[:: max(1, len(x) // _OBSERVED)][:_OBSERVED]


def _observe(p: float) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(quantizer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(quantizer, ActivationQuantizer)
        quantizer.calibrate(args[0], p)

    return hook


def harden(modules: Sequence[nn.Module]) -> None:
    """Rounds every weight of the group to integers."""
    for layer in layers_of(modules):
        layer.harden()


def reconstruct(
    modules: Sequence[nn.Module],
    inputs: Inputs,
    method: Method,
    settings: Optimiser,
    seed: int,
    progress: Progress | None = None,
    limit: float | None = None,
) -> Outcome:
    """Optimises the calibrated ``modules`` jointly and hardens them in place.

    Args:
        modules: attached modules (:func:`modcap.quantization.layers.attach`), scales searched.
        inputs: see :class:`Inputs`.
        method: ``rtn`` rounds to nearest; ``adaround`` optimises rounding with full-precision
            activations; ``brecq`` adds quantized activations with learned scales; ``qdrop`` mixes
            quantized and full-precision values, in the input and inside, while optimising.
        settings: steps, batch size, rates, regulariser.
        seed: of batches and drops.
        progress: told of the loss about fifty times.
        limit: bytes of the output above which it lies in a file.
    """
    inputs = Inputs(*map(channels_last, (inputs.quantized, inputs.full, inputs.target)))
    curve = torch.zeros((0, 2), dtype=torch.float64)
    if method is not Method.RTN and settings.iterations:
        for layer in layers_of(modules):
            if settings.rounding is Rounding.SOFT:
                layer.soften()
            else:
                weight = layer.weight.detach()
                layer.harden()
                layer.loosen()
                layer.free(weight)
        curve = optimise(modules, inputs, method, settings, seed, progress)
    harden(modules)
    output = run_batched(modules, inputs.quantized, limit)
    return Outcome(curve, output, relative_error(output, inputs.target))


class _Group:
    """The trainable parts of a group, and its forward pass."""

    def __init__(self, modules: Sequence[nn.Module], method: Method, settings: Optimiser) -> None:
        self.modules, self.layers = modules, layers_of(modules)
        self.activations = [x for module in modules for x in quantizers(module)[1].values()]
        self.method, self.settings = method, settings

    def prepare(self, generator: torch.Generator) -> None:
        for quantizer in self.activations:
            quantizer.enabled = self.method is not Method.ADAROUND
            if self.method is Method.QDROP:
                quantizer.keep_probability = self.settings.keep_probability
                quantizer.generator = generator

    def finish(self) -> None:
        for quantizer in self.activations:
            quantizer.enabled, quantizer.keep_probability = True, 1.0
            quantizer.generator = None
            quantizer.scale.data.abs_()
            quantizer.scale.grad = None

    @torch.no_grad()
    def output_sizes(self, x: Tensor) -> dict[QuantLayer, float]:
        """The root mean square of what each layer gives for x (N, ...)."""
        found: dict[QuantLayer, float] = {}

        def note(layer: nn.Module, _: object, y: Tensor) -> None:
            found[cast(QuantLayer, layer)] = float(y.double().square().mean().sqrt())

        handles = [layer.register_forward_hook(note) for layer in self.layers]
        self.forward(x, None)
        for handle in handles:
            handle.remove()
        return found

    def parameter_groups(self, x: Tensor) -> list[dict[str, object]]:
        """What learns, and how fast; rates of biases are relative to what their layers give for x,
        since the units of activations are a matter of the network."""
        s = self.settings
        roundings = [x.rounding for x in self.layers if x.rounding is not None]
        groups: list[dict[str, object]] = [{"params": roundings, "lr": s.rounding_rate}]
        for layer in self.layers:
            if layer.latent is not None:
                rate = s.rounding_rate * min(1.0, layer.fan_in / _MANY_WEIGHTS)
                groups.append({"params": [layer.latent], "lr": rate})
        if s.weight_scale_rate:
            stretches = [x.stretch for x in self.layers]
            groups.append({"params": stretches, "lr": s.weight_scale_rate})
        if s.bias_rate:
            for layer, size in self.output_sizes(x).items():
                if layer.bias is not None:
                    groups.append({"params": [layer.bias], "lr": s.bias_rate * size})
        if s.scale_rate and self.method is not Method.ADAROUND:
            for quantizer in self.activations:
                scale = float(quantizer.scale.detach())
                relative = s.scale_rate * scale
                absolute = min(s.scale_rate, _LARGEST_STEP * scale)
                rate = relative if s.relative_scale_rate else absolute
                groups.append({"params": [quantizer.scale], "lr": rate})
        return groups

    def forward(self, x: Tensor, beta: float | None) -> Tensor:
        for layer in self.layers:
            layer.beta = beta
        if self.settings.precision is Precision.FLOAT32:
            return run(self.modules, x)
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return run(self.modules, x).float()

    def penalty(self) -> Tensor:
        """The regulariser of the weights that the last forward pass used."""
        return torch.stack([layer.penalty for layer in self.layers]).sum()


def optimise(
    modules: Sequence[nn.Module],
    inputs: Inputs,
    method: Method,
    settings: Optimiser,
    seed: int,
    progress: Progress | None,
) -> Tensor:
    """Trains the variables of soft or loose ``modules``; the loss over steps (points, 2)."""
    generator = torch.Generator(inputs.target.device).manual_seed(seed)
    group = _Group(modules, method, settings)
    group.prepare(generator)
    parameters = group.parameter_groups(_observed(inputs.full))
    channels = 2 if inputs.target.ndim == 3 else 1  # of tokens, the last
    energy = float(_observed(inputs.target).square().sum(channels).mean())
    optimizer = torch.optim.Adam(parameters, eps=_EPS * min(1.0, max(energy, _EPS)), fused=True)
    rates = [float(p["lr"]) for p in optimizer.param_groups]
    curve: list[tuple[int, float]] = []
    for step in range(settings.iterations):
        for index, (rate, place) in enumerate(zip(rates, optimizer.param_groups, strict=True)):
            if index or settings.rounding_decay:
                place["lr"] = rate * _cosine(step / settings.iterations)
        x, y = _batch(inputs, method, settings, generator)
        beta = _beta(step / settings.iterations, settings)
        loss = (group.forward(x, beta) - y).square().sum(channels).mean()
        total = loss if beta is None else loss + settings.regulariser * group.penalty()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        if step % max(1, settings.iterations // _REPORTS) == 0 or step == settings.iterations - 1:
            curve.append((step, float(loss.detach())))
            if not math.isfinite(curve[-1][1]):
                raise Diverged(
                    f"the loss is {curve[-1][1]} after {step} steps: are weights and images "
                    "finite, and learning rates no larger than in the presets?"
                )
            if progress is not None:
                progress(step + 1, settings.iterations, curve[-1][1])
    group.finish()
    return torch.tensor(curve, dtype=torch.float64).reshape(-1, 2)


def _batch(
    inputs: Inputs, method: Method, settings: Optimiser, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    device = inputs.target.device
    size = min(settings.batch_size, len(inputs.target))
    index = torch.randperm(len(inputs.target), generator=generator, device=device)[:size]
    x = inputs.quantized[index]
    if method is Method.QDROP:
        keep = draw(x, settings.keep_probability, generator)
        x = torch.lerp(inputs.full[index], x, keep)
    return x, inputs.target[index]


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _beta(done: float, settings: Optimiser) -> float | None:
    """The exponent of the regulariser, annealed by a cosine; None during the warm-up, and where
    rounding is not soft."""
    soft = settings.rounding is Rounding.SOFT
    if done < settings.warm_up or not settings.regulariser or not soft:
        return None
    share = (done - settings.warm_up) / (1 - settings.warm_up)
    return settings.beta_end + (settings.beta_start - settings.beta_end) * _cosine(share)
