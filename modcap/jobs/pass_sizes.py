"""How many images go through modules at once: a rule of shapes alone.

Results depend on it in their last bits, so no setting of memory changes it, and it is part of keys
where it is less than it always was, a batch (:class:`modcap.jobs.job.Arithmetic`).
"""

from __future__ import annotations

from modcap.graph.forward import BATCH
from modcap.graph.network import Network
from modcap.jobs.outline import Outline, outline_of
from modcap.ptq.selection import Span
from modcap.recipe import Recipe

__all__ = [
    "PASS",
    "STEP",
    "batch_size",
    "correction_images",
    "images_per_pass",
    "images_per_step",
]

_LEAST = 4  # images of a step that positions bound

PASS = 512 << 20
"""Bytes of all values that a module computes for the images of a pass, at most."""

STEP = 512 << 20
"""Bytes that a pass with gradients keeps, at most; a single image may take more."""


def images_per_pass(network: Network | Outline) -> int:
    """The largest power of two, at most 256, of images whose values inside the widest module fit
    into :data:`PASS`."""
    widest = max(module.inside for module in outline_of(network).footprints)
    return _power_of_two(min(BATCH, PASS // widest))


def images_per_step(network: Network | Outline, span: Span, batch: int) -> int | None:
    """The largest power of two of images whose values and gradients in a group fit into
    :data:`STEP`; None where that is a whole ``batch``."""
    kept = sum(module.kept for module in outline_of(network).footprints[span.start : span.stop])
    return None if batch * kept <= STEP else _power_of_two(STEP // kept)


def correction_images(network: Network | Outline, most: int) -> tuple[int, ...] | None:
    """Of each module, the largest power of two of images, all of whose values inside fit into half
    of :data:`PASS`; None where that is at least ``most`` for all."""
    footprints = outline_of(network).footprints
    counts = [min(most, _power_of_two(PASS // 2 // module.inside)) for module in footprints]
    return tuple(counts) if min(counts) < most else None


def batch_size(network: Network | Outline, span: Span, recipe: Recipe) -> int:
    """Images of a step of a group: those of the recipe, or as many as its ``positions`` hold."""
    most = recipe.optimiser.batch_size
    if recipe.positions is None:
        return most
    modules = outline_of(network).footprints[span.start : span.stop]
    return min(most, max(_LEAST, recipe.positions // max(m.positions for m in modules)))


def _power_of_two(most: int) -> int:
    return 1 << (max(1, most).bit_length() - 1)
