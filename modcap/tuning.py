"""Tuning: the scales and biases of the whole network, trained together, the integers fixed.

Reconstruction lets each group reproduce its own output; what is left adds up over the depth, above
all where groups did not wait for each other. A few steps through the whole network, on the
distance of its logits from those in full precision, mend most of that: they reach every scale of
weights, every bias and every scale of activations, and leave integers and size as they are. No
labels are needed.

EfficientQAT (Chen et al., 2024) trains step sizes end to end like this, after blocks, for language
models.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from modcap.quantized import layers_of
from modcap.recipe import Method, Optimiser
from modcap.reconstruct import Inputs, Progress, chain, harden, optimise, relative_error

__all__ = ["tune"]


def tune(
    modules: Sequence[nn.Module],
    x: Tensor,
    target: Tensor,
    steps: int,
    rate: float,
    batch_size: int,
    seed: int,
    progress: Progress | None = None,
) -> tuple[Tensor, float, float]:
    """Tunes the hardened ``modules`` in place.

    Args:
        modules: quantized and hardened.
        x: preprocessed images (N, C, H, W).
        target: the logits of full precision on them (N, classes).
        steps: of Adam.
        rate: of learning, by which a scale changes in a step relative to its size; falls to 0.
        batch_size: images per step.
        seed: of batches.
        progress: told of the loss about fifty times.

    Returns:
        Loss over steps (points, 2); relative error of the output on ``x`` before and after.
    """
    before = relative_error(chain(modules, x), target)
    for layer in layers_of(modules):
        layer.loosen()
    settings = Optimiser(
        iterations=steps,
        batch_size=batch_size,
        scale_rate=rate,
        relative_scale_rate=True,
        weight_scale_rate=rate,
        bias_rate=rate,
        regulariser=0,
    )
    curve = optimise(modules, Inputs(x, x, target), Method.BRECQ, settings, seed, progress)
    harden(modules)
    return curve, before, relative_error(chain(modules, x), target)
