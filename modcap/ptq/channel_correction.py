"""Correction of what reconstruction left: every output channel back to its mean and scale.

Groups that were reconstructed beside each other saw estimates of their inputs, and the errors of
those before them add up. One walk through the network mends most of that: at each weight layer, the
outputs z that the quantized network has there are mapped to the full-precision outputs y by the
line a z + b of least squares, channel by channel. a goes into the scale of the weights and b into
the bias, so integers and size stay. A noisy channel gets a < 1, which keeps its noise from growing.

Correcting the mean alone is the bias correction of Nagel et al., Data-Free Quantization, ICCV 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from modcap.graph.forward import Passes, channels_last, run_batched
from modcap.ptq.relative_error import relative_error
from modcap.quantization.layers import QuantLayer

__all__ = ["IMAGES", "correct", "correct_module"]

IMAGES = 256  # that the channels are measured on
_FACTORS = 0.5, 2.0  # bounds of a


@torch.no_grad()
def correct(
    floats: Sequence[fx.GraphModule],
    modules: Sequence[nn.Module],
    x: Tensor,
    counts: Sequence[int] | None = None,
    passes: Passes | None = None,
) -> tuple[float, float]:
    """Corrects the frozen ``modules`` in place, in order, each behind those corrected before.

    Args:
        floats: the full-precision modules.
        modules: the same, quantized and frozen.
        x: preprocessed images (N, C, H, W).
        counts: images that each module is corrected on, for all of its values are held at once; by
            default all.
        passes: how many images go through the modules at once otherwise.

    Returns:
        The relative error of the output on ``x`` before and after.
    """
    before = run_batched(modules, x, passes)
    full = behind = x
    for float_module, module, count in zip(
        floats, modules, counts or [len(x)] * len(modules), strict=True
    ):
        assert isinstance(module, fx.GraphModule)
        outputs = correct_module(float_module, module, full[:count], behind[:count])
        if count < len(x):
            full = run_batched([float_module], full, passes)
            behind = run_batched([module], behind, passes)
        else:
            full, behind = outputs
    return relative_error(before, full), relative_error(behind, full)


def correct_module(
    float_module: fx.GraphModule, module: fx.GraphModule, full: Tensor, behind: Tensor
) -> tuple[Tensor, Tensor]:
    """Corrects one frozen module in place, on its inputs (N, ...) in full precision and behind what
    lies before it; returns what both give for these."""
    outputs = _Outputs(float_module, {n for n, m in module.named_modules() if _is_layer(m)})
    full = outputs.run(channels_last(full))
    return full, _Correct(module, outputs.kept).run(channels_last(behind))


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, QuantLayer)


class _Outputs(fx.Interpreter):
    """Runs a float module and keeps the outputs of its weight layers."""

    def __init__(self, module: fx.GraphModule, layers: set[str]) -> None:
        super().__init__(module)
        self._layers = layers
        self.kept: dict[str, Tensor] = {}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        y = super().call_module(target, args, kwargs)
        if target in self._layers:
            self.kept.setdefault(target, y)
        return y


class _Correct(fx.Interpreter):
    """Runs a quantized module and corrects each weight layer before its output goes on."""

    def __init__(self, module: fx.GraphModule, outputs: dict[str, Tensor]) -> None:
        super().__init__(module)
        self._outputs = outputs

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        z = super().call_module(target, args, kwargs)
        if target not in self._outputs:
            return z
        layer = self.fetch_attr(target)
        factor, shift = _line(z, self._outputs.pop(target), layer)
        layer.rescale(factor, shift)
        spread = (1, -1) + (1,) * (z.ndim - 2) if _channel(layer) == 1 else (-1,)
        z = z * factor.reshape(spread)
        return z if shift is None else z + shift.reshape(spread)


def _channel(layer: QuantLayer) -> int:
    """The dimension of the output that counts channels."""
    return -1 if isinstance(layer.layer, nn.Linear) else 1


def _line(z: Tensor, y: Tensor, layer: QuantLayer) -> tuple[Tensor, Tensor | None]:
    """Factor and shift (channels,) of least squares from z to y; no shift without a bias."""
    channel = _channel(layer)
    z, y = (t.transpose(0, channel).flatten(1) for t in (z, y))
    has_bias = layer.layer.bias is not None
    mean_z, mean_y = (t.mean(1, keepdim=True) * has_bias for t in (z, y))
    z, y = z - mean_z, y - mean_y
    square, product = (z * z).mean(1), (z * y).mean(1)
    steady = square <= 1e-12 * mean_z.square().squeeze(1)  # nothing to fit a slope to
    factor = torch.where(steady, 1.0, product / square.clamp_min(1e-30)).clamp(*_FACTORS)
    factor = layer.nearest_factor(factor)
    shift = mean_y.squeeze(1) - factor * mean_z.squeeze(1)
    return factor, shift if has_bias else None
