"""Which dimension of a module's output counts channels: what its operators do, not its shape.

Images are (N, C, H, W) behind a convolution, (N, H, W, C) where a linear layer or a layer norm is
last, tokens (N, T, C), and attention permutes all of these. So layers say where they put channels,
and what follows is run on numbered channels in place of values: however an operator is written,
the numbers are found along the dimension that it moved channels to.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

__all__ = ["channel_dimension"]

aten = torch.ops.aten
_LAST = (F.layer_norm, F.rms_norm, F.linear, aten.layer_norm.default, aten.linear.default)
_EQUAL = 1e-4  # of the largest number: sums of the same numbers differ by their order


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
        self._numbered: dict[fx.Node, Any] = {}  # numbers of channels in place of values
        self.found: int | None = None

    @torch.no_grad()
    def run_node(self, n: fx.Node) -> Any:
        followed = self._followed(n)  # before n works in place
        value = super().run_node(n)
        if n.op == "output":
            self.found = _place(self._numbered.get(n.all_input_nodes[0]))
            return value
        place = self._given if n.op == "placeholder" else self._made(n, value)
        if place is None and isinstance(value, Tensor) and _place(followed) is None:
            place = self._guessed(n, value)
        if place is not None and place < value.ndim:
            followed = _numbers(value, place)
        if followed is not None:
            self._numbered[n] = followed
        return value

    def _made(self, n: fx.Node, value: Any) -> int | None:
        """Where a layer puts its channels."""
        if not isinstance(value, Tensor):
            return None
        if n.op == "call_module":
            outer = self.fetch_attr(str(n.target))
            layer = getattr(outer, "layer", outer)  # of a quantized one
            if isinstance(layer, _ConvNd):
                return value.ndim - len(layer.kernel_size) - 1
            if isinstance(layer, _BatchNorm | nn.GroupNorm):
                return 1
            if isinstance(layer, nn.Linear | nn.LayerNorm | nn.RMSNorm):
                return value.ndim - 1
        return value.ndim - 1 if n.target in _LAST else None

    def _followed(self, n: fx.Node) -> Any:
        """What ``n`` makes of numbers: tensors, or None where it reads none, or takes none."""
        if not any(source in self._numbered for source in n.all_input_nodes) or n.op == "output":
            return None
        if n.op == "call_module" and self.fetch_attr(str(n.target)).state_dict():
            return None  # a quantizer, say: it is not run twice
        args, kwargs = fx.node.map_arg((n.args, n.kwargs), self._read)
        try:
            found = getattr(self, n.op)(n.target, args, kwargs)
        except Exception:  # of operators that take no such values
            return None
        if isinstance(found, tuple | list):
            return found if found and all(isinstance(part, Tensor) for part in found) else None
        return found if _is_floating(found) else None

    def _read(self, source: fx.Node) -> Any:
        """Numbers, or the value of what has none; copies, which may be worked on in place."""
        value = self._numbered.get(source, self.env.get(source))
        return value.clone() if isinstance(value, Tensor) else value

    def _guessed(self, n: fx.Node, value: Tensor) -> int | None:
        """Where channels of the first that ``n`` reads are by shape, where numbers do not say: they
        are alike, or differ along several dimensions (positions were added to them, say)."""
        for source in n.all_input_nodes:
            before = self._numbered.get(source)
            place = _place(before)
            if place is not None and isinstance(before, Tensor):
                return _moved(place, before.shape, value.shape)
        return None


def _is_floating(value: Any) -> bool:
    """Truth values and indices are no numbers of channels."""
    return isinstance(value, Tensor) and value.is_floating_point()


def _numbers(like: Tensor, place: int) -> Tensor:
    """The numbers of channels, in the shape of ``like``."""
    size = like.shape[place]
    dtype = like.dtype if like.is_floating_point() else torch.float32
    numbers = torch.linspace(0.1, 1, size, device=like.device, dtype=dtype)
    shape = [size if dimension == place else 1 for dimension in range(like.ndim)]
    return numbers.reshape(shape).expand(like.shape).contiguous()


def _place(numbers: Any) -> int | None:
    """The one dimension along which ``numbers`` differ, None where it is not one."""
    if not _is_floating(numbers) or not numbers.numel() or not numbers.ndim:
        return None
    spread = [numbers.amax(d).sub(numbers.amin(d)).amax() for d in range(numbers.ndim)]
    least = _EQUAL * numbers.abs().amax()
    differ = [dimension for dimension, size in enumerate(spread) if size > least]
    return differ[0] if len(differ) == 1 else None


def _moved(place: int, before: torch.Size, after: torch.Size) -> int | None:
    """The dimension at ``place`` after a change of shape: the same from the front, or from the
    end."""
    if len(before) == len(after):
        return place
    if before[: place + 1] == after[: place + 1]:
        return place
    tail = len(before) - place
    return len(after) - tail if before[-tail:] == after[-tail:] else None
