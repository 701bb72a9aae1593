"""What a job needs, estimated from the shapes of its group: memory at its peak, and time.

    memory = base
           + images * (2 input + 2 output)      calibration activations of the group
           + images * 2 output of all modules   what is kept for the next job, at most 1 GiB
           + images * image + 256 * inside      a forward pass of what lies before it
           + batch * 6 * inside                 an optimisation step: values, factors, gradients
           + 12 * weights + 2 * all weights     rounding, Adam's two moments, gradients, copies

The calibration activations are the group's input, in full precision and behind the quantized
prefix, the output to reproduce, and the output that it has. A bound on activations in memory takes
the place of each term with calibration images that is more.
"""

from __future__ import annotations

from dataclasses import dataclass

from modcap.graph.network import Network
from modcap.jobs.activation_cache import CACHE
from modcap.jobs.outline import Footprint, Outline, outline_of
from modcap.ptq.selection import Span

__all__ = [
    "KEPT",
    "Footprint",
    "ModuleTimes",
    "evaluation_memory",
    "footprints",
    "reconstruction_memory",
]

KEPT = 4  # tensors of calibration activations that a reconstruction holds: 2 input, 2 output
_BASE = 512 << 20  # a worker process with torch, 312 MB, inputs and results kept, 192 MB at most
_PASS = 256  # images in a forward pass without gradients
_STEP = 6  # times the inner values, in a step with gradients
_WEIGHTS = 12  # times the weights, of a group that is optimised
_ROUND = 256 << 20  # requests are multiples: few sizes, so that workers are shared


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


def footprints(network: Network | Outline) -> tuple[Footprint, ...]:
    """Of every module, in order."""
    return outline_of(network).footprints


def reconstruction_memory(
    network: Network | Outline, span: Span, images: int, batch: int, bound: int | None = None
) -> int:
    """Bytes that the reconstruction of a group needs.

    Args:
        network: whose group it is.
        span: its modules.
        images: of calibration.
        batch: images per step; 0 where nothing is optimised.
        bound: bytes of calibration activations that are held in memory, at most.
    """
    modules = footprints(network)
    before, group = modules[: span.start], modules[span.start : span.stop]
    kept = images * 2 * (group[0].input + group[-1].output)
    cached = min(CACHE, images * 2 * sum(module.output for module in modules))
    widest = max(module.inside for module in (*before, *group))
    first = images * modules[0].input
    if bound is not None:
        kept, cached, first = (min(size, bound) for size in (kept, cached, first))
    passes = first + _PASS * widest
    step = batch * _STEP * sum(module.inside for module in group)
    weights = sum(module.weights for module in group) * (_WEIGHTS if batch else 3)
    return _rounded(kept + cached + max(passes, step) + weights + 2 * _all_weights(modules))


def evaluation_memory(network: Network | Outline, pixels: int = 0) -> int:
    """Bytes that an evaluation needs: a pass, the losses on 256 images, and the images themselves,
    ``pixels`` bytes of them, once as they are read and once parsed."""
    modules = footprints(network)
    widest = max(module.inside for module in modules)
    across = max(2 * module.input + 2 * module.output for module in modules)
    return _rounded(2 * pixels + _PASS * (2 * widest + across) + 4 * _all_weights(modules))


def _all_weights(modules: tuple[Footprint, ...]) -> int:
    return sum(module.weights for module in modules)


def _rounded(size: int) -> int:
    return -(-(_BASE + size) // _ROUND) * _ROUND
