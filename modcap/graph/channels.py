"""Which dimension of a module's output counts channels: what its operators say, not its shape.

Images are (N, C, H, W) behind a convolution, (N, H, W, C) where a linear layer or a layer norm is
last, tokens (N, T, C), and attention permutes all of these.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

__all__ = ["channel_dimension"]

aten = torch.ops.aten
_LAST = (F.layer_norm, F.rms_norm, F.linear, aten.layer_norm.default, aten.linear.default)
_PERMUTED = ("permute", torch.permute, aten.permute.default)
_SWAPPED = (
    *("transpose", torch.transpose, aten.transpose.int),
    *("swapaxes", torch.swapaxes, "swapdims", torch.swapdims),
)


def channel_dimension(modules: Iterable[nn.Module], x: Tensor) -> int:
    """The dimension of what ``modules`` give, one after another, for x (N, ...)."""
    known: int | None = None
    for module in modules:
        if isinstance(module, fx.GraphModule):
            follower = _Follower(module, known)
            x = follower.run(x)
            known = follower.found
        else:
            x, known = module(x), None
    return _usual(x.ndim) if known is None or known >= x.ndim else known


def _usual(ndim: int) -> int:
    return 2 if ndim == 3 else 1  # of tokens, the last


class _Follower(fx.Interpreter):
    """Runs a module, and follows the channels from the layers that make them to its output.

    Attributes:
        found: their dimension in the output, None where no layer says.
    """

    def __init__(self, module: fx.GraphModule, given: int | None) -> None:
        super().__init__(module)
        self._given = given
        self._places: dict[fx.Node, int | None] = {}
        self.found: int | None = None

    @torch.no_grad()
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "output":
            self.found = self._places.get(cast(fx.Node, n.args[0]))
        elif isinstance(value, Tensor) and n.op != "get_attr":
            self._places[n] = self._place(n, value)
        return value

    def _place(self, n: fx.Node, value: Tensor) -> int | None:
        if n.op == "placeholder":
            return self._given
        made = self._made(n, value.ndim)
        return self._passed(n, value) if made is None else made

    def _made(self, n: fx.Node, ndim: int) -> int | None:
        """Where a layer puts its channels."""
        if n.op == "call_module":
            outer = self.fetch_attr(str(n.target))
            layer = getattr(outer, "layer", outer)  # of a quantized one
            if isinstance(layer, _ConvNd):
                return ndim - len(layer.kernel_size) - 1
            if isinstance(layer, _BatchNorm | nn.GroupNorm):
                return 1
            if isinstance(layer, nn.Linear | nn.LayerNorm | nn.RMSNorm):
                return ndim - 1
        return ndim - 1 if n.target in _LAST else None

    def _passed(self, n: fx.Node, value: Tensor) -> int | None:
        """Where channels of what ``n`` reads are in what it gives."""
        for source in n.all_input_nodes:
            place, before = self._places.get(source), self.env.get(source)
            if place is None or not isinstance(before, Tensor):
                continue
            if n.target in _PERMUTED:
                order = cast(Any, n.args[1] if len(n.args) == 2 else n.args[1:])
                return [d % before.ndim for d in order].index(place)
            if n.target in _SWAPPED:
                one, two = (d % before.ndim for d in cast(tuple[int, int], n.args[1:3]))
                return {one: two, two: one}.get(place, place)
            return _moved(place, before.shape, value.shape)
        return None


def _moved(place: int, before: torch.Size, after: torch.Size) -> int | None:
    """The dimension at ``place`` after a change of shape: the same from the front, or from the
    end."""
    if len(before) == len(after):
        return place
    if before[: place + 1] == after[: place + 1]:
        return place
    tail = len(before) - place
    return len(after) - tail if before[-tail:] == after[-tail:] else None
