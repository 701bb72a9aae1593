"""Whether a captured network is the function that the model computes, and why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modcap.core.errors import InputError
from modcap.core.messages import first_line
from modcap.graph.capture import original

__all__ = ["answer", "check"]

_SAME = 1e-3  # relative error of the outputs, at most; folding batch norms costs 1e-6
_HALF = (torch.float16, torch.bfloat16)


@torch.no_grad()
def answer(model: nn.Module | ExportedProgram, images: Tensor) -> Any:
    """What the model returns for images (N, C, H, W), which it may change.

    Raises:
        InputError: it takes something else, too.
    """
    try:
        return original(model)(images.clone())
    except Exception as reason:
        raise InputError(
            f"the model fails on an image tensor alone, of shape {tuple(images.shape)} "
            f"({first_line(reason)}): give one that takes nothing else"
        ) from None


@torch.no_grad()
def check(
    network: Callable[[Tensor], Tensor],
    model: nn.Module | ExportedProgram,
    images: Tensor,
    expected: Tensor,
) -> None:
    """Refuses a network that is not what the model is, before anything is built on it.

    Args:
        network: the captured one.
        model: which it was captured from.
        images: (N, C, H, W).
        expected: what the model returns for them, as one tensor.
    """
    if not expected.isfinite().all():
        raise InputError(
            "the model answers with NaN or infinity: check its weights, and how images are scaled"
        )
    error = float((network(images) - expected).norm() / expected.norm().clamp(min=1e-12))
    if not error < _SAME:
        raise InputError(
            f"the captured network differs from the model (relative error {error:.2g}): "
            f"{_reason(model, images)}"
        )
    _check_derivatives(network, images[:2])


def _check_derivatives(network: Callable[[Tensor], Tensor], images: Tensor) -> None:
    """Refuses an operator that reconstruction could not learn through."""
    try:
        with torch.enable_grad():
            network(images.clone().requires_grad_()).sum().backward()
    except (RuntimeError, NotImplementedError) as error:
        if "derivative" in str(error):
            raise InputError(
                f"the model cannot be optimised ({first_line(error)}): use another operator"
            ) from None


def _reason(model: nn.Module | ExportedProgram, images: Tensor) -> str:
    """Runs the model once more and looks for what no graph of it can repeat."""
    watched = _Watch()
    with watched:
        original(model)(images.clone())
    if watched.draws:
        return f"its forward draws random numbers ({watched.draws}) in eval mode"
    if watched.half:
        return (
            f"it computes in {watched.half} inside: take autocast, or a cast, out of its forward; "
            "modcap's networks are float32"
        )
    return "does its forward change a tensor through a view of it, or keep a state between calls?"


class _Watch(TorchDispatchMode):
    """Notes an operator that draws at random, and a type of half precision."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.draws = self.half = ""

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags and "_scaled_dot" not in str(func):
            self.draws = self.draws or func.overloadpacket.__name__
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.dtype in _HALF:
                self.half = self.half or str(value.dtype).removeprefix("torch.")
        return result
