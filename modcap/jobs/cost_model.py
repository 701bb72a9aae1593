"""What a job needs, estimated from the shapes of its modules: memory at its peak, and time.

    memory = base
           + images * (2 input + 2 output)      calibration activations of the group
           + images * 2 output of all modules   what is kept for the next job, at most 1 GiB
           + the larger of
               pass * 2.2 live                  a forward pass, and what quantizers hold meanwhile
               step * (1.7 kept + 3 live)       one with gradients, and these
           + 12 * weights + 4 * all weights     rounding, Adam's two moments, gradients, copies
           + 64 MiB                             where layers are rounded layer-wise

The calibration activations are the group's input, in full precision and behind the quantized
prefix, the output to reproduce, and the output that it has. Of these, and of what is kept, tensors
of more than a quarter of the recipe's bound lie in files, and do not count. How many images a pass
and a step have is a rule of shapes, too (:mod:`modcap.jobs.pass_sizes`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modcap.graph.network import Network
from modcap.jobs.activation_cache import CACHE
from modcap.jobs.outline import Footprint, Outline, outline_of
from modcap.jobs.pass_sizes import images_per_pass, images_per_step
from modcap.ptq.selection import Span

if TYPE_CHECKING:
    from modcap.jobs.job import Cell

__all__ = [
    "KEPT",
    "Footprint",
    "ModuleTimes",
    "capacity_memory",
    "correction_memory",
    "evaluation_memory",
    "footprints",
    "reconstruction_memory",
    "times_of",
]

KEPT = 4  # tensors of calibration activations that a reconstruction holds: 2 input, 2 output
_BASE = 512 << 20  # a worker process with torch, 312 MB, inputs and results kept, 192 MB at most
_KEPT = 1.7  # times what a pass with gradients keeps: what gradients take, and gaps in memory
_TEMPORARY = 3  # times the values that are there at once: in sums, in gradients
_CORRECTED = 4  # the same in a correction, which fits lines to all outputs of a layer
_QUANTIZERS = 2.2  # the same in a pass without gradients
_WEIGHTS = 12  # times the weights, of a group that is optimised
_VECTORS = 64 << 20  # inputs of a layer, laid out as vectors, and their products
_LOSSES = 256  # images that errors over the depth, and corrections, are measured on
_BATCH = 32  # images of the step that costs are relative to
_OVERHEAD = 800.0  # of a step of any module, in units of its cost: Python, Adam, launches
_FORWARD = 0.08  # of a step, for as many images, is a pass without gradients
_SEARCH = 25.0  # steps that the search for scales is worth
_ROUND = 64 << 20  # requests are multiples: few sizes, so that workers are shared


@dataclass(frozen=True)
class ModuleTimes:
    """Seconds that the modules of a network take, in order, on one worker.

    Attributes:
        step: of an optimisation step of each.
        forward: of a forward pass of one image through each.
        search: of the search for the scales of each.
        images: of calibration.
        tests: images of evaluation.
    """

    step: tuple[float, ...]
    forward: tuple[float, ...]
    search: tuple[float, ...]
    images: int
    tests: int


def times_of(cell: Cell) -> ModuleTimes:
    """Relative times, from shapes alone; a unit is about 10 microseconds of one core.

    Fitted to the jobs of ``make quantize``, which they meet within a factor of 2 or so by kind.
    """
    costs = tuple(module.step_cost for module in footprints(cell.network))
    batch = cell.recipe.optimiser.batch_size / _BATCH
    steps = tuple(_OVERHEAD + cost for cost in costs)
    pixels = math.prod(cell.network.input_shape)
    return ModuleTimes(
        step=tuple(_OVERHEAD + batch * cost for cost in costs),
        forward=tuple(_FORWARD * step / _BATCH for step in steps),
        search=tuple(_SEARCH * step for step in steps),
        images=cell.recipe.calibration,
        tests=cell.pixels // pixels,
    )


def footprints(network: Network | Outline) -> tuple[Footprint, ...]:
    """Of every module, in order."""
    return outline_of(network).footprints


def reconstruction_memory(
    network: Network | Outline,
    span: Span,
    images: int,
    batch: int,
    bound: int | None = None,
    layer_wise: bool = False,
) -> int:
    """Bytes that the reconstruction of a group needs.

    Args:
        network: whose group it is.
        span: its modules.
        images: of calibration.
        batch: images per step; 0 where nothing is optimised.
        bound: bytes of calibration activations that are held in memory, at most.
        layer_wise: its integers start from :mod:`modcap.ptq.layerwise`.
    """
    modules = footprints(network)
    group = modules[span.start : span.stop]
    ends = group[0].input, group[0].input, group[-1].output, group[-1].output
    held = sum(_in_memory(images * size, bound) for size in (*ends, modules[0].input))
    cached = min(CACHE, images * 2 * sum(module.output for module in modules))
    cached = cached if bound is None else min(cached, bound)
    weights = sum(module.weights for module in group)
    weights *= _WEIGHTS if batch or layer_wise else 3
    without, with_gradients = _pass(network, modules[: span.stop]), _step(network, span, batch)
    passes = max(without, with_gradients)
    if len(group) == len(modules):  # all images go through it before and after its steps
        passes += min(without, with_gradients) // 2  # gaps that one leaves to the other
    vectors = _VECTORS if layer_wise else 0
    return _rounded(held + cached + passes + vectors + weights + 4 * _all_weights(modules))


def capacity_memory(network: Network | Outline, images: int, bound: int | None = None) -> int:
    """Bytes that the capacity of a module needs that is measured on ``images``; ``bound`` as for
    :func:`reconstruction_memory`."""
    modules = footprints(network)
    held = max(_ends(module, images, bound) for module in modules)
    return _rounded(
        held + images * modules[0].input + _pass(network, modules) + 6 * _all_weights(modules)
    )


def correction_memory(
    network: Network | Outline, counts: Sequence[int] | None, bound: int | None = None
) -> int:
    """Bytes that a correction needs.

    Args:
        network: that is corrected.
        counts: images that each module is corrected on; None is all.
        bound: as for :func:`reconstruction_memory`.
    """
    modules = footprints(network)
    counts = counts or [_LOSSES] * len(modules)
    inside = [
        n * (module.inside + _CORRECTED * module.live)
        for n, module in zip(counts, modules, strict=True)
    ]
    held = max(_ends(module, _LOSSES, bound) for module in modules)
    most = max(max(inside), _pass(network, modules))
    return _rounded(_LOSSES * modules[0].input + held + most + 4 * _all_weights(modules))


def evaluation_memory(network: Network | Outline) -> int:
    """Bytes that an evaluation needs: a pass, and the images that losses are measured on. Test
    images are read as they are needed."""
    modules = footprints(network)
    first = 2 * _LOSSES * modules[0].input
    return _rounded(first + _pass(network, modules) + 6 * _all_weights(modules))


def _pass(network: Network | Outline, modules: Sequence[Footprint]) -> int:
    live = max(module.live for module in modules)
    return math.ceil(images_per_pass(network) * _QUANTIZERS * live)


def _step(network: Network | Outline, span: Span, batch: int) -> int:
    group = footprints(network)[span.start : span.stop]
    at_once = images_per_step(network, span, batch) or batch
    temporary = _TEMPORARY * max(module.live for module in group)
    return math.ceil(at_once * (_KEPT * sum(module.kept for module in group) + temporary))


def _ends(module: Footprint, images: int, bound: int | None) -> int:
    """Of inputs and outputs, each in full precision and quantized."""
    return 2 * sum(_in_memory(images * size, bound) for size in (module.input, module.output))


def _in_memory(size: int, bound: int | None) -> int:
    return 0 if bound is not None and size > bound // KEPT else size


def _all_weights(modules: Sequence[Footprint]) -> int:
    return sum(module.weights for module in modules)


def _rounded(size: int) -> int:
    return -(-(_BASE + size) // _ROUND) * _ROUND
