"""A GPU that is not there: tensors that say they lie on ``cuda`` and are computed on the CPU.

Every operation refuses to mix them with tensors of the host, as CUDA does (and with indices of the
host, which CUDA would fetch), so code that forgets to say where a tensor shall lie fails here.
Values, draws included, are those of the CPU; so what a job gives on it can be compared to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

__all__ = ["PretendTensor", "pretend_gpu"]

_CUDA = torch.device("cuda", 0)
_HOST = torch.device("cpu")
_MOVES = (Tensor.to, Tensor.cpu, Tensor.cuda)
_WHERE = {Tensor.device.__get__: _CUDA, Tensor.is_cuda.__get__: True}  # type: ignore[attr-defined]
_NOT_ON_CUDA = (Tensor.numpy, Tensor.__array__)  # which a tensor of CUDA refuses


class PretendTensor(Tensor):
    """Says that it lies on the GPU. To torch itself it is one of the meta device, which needs no
    driver."""

    kept: Tensor

    @staticmethod
    def __new__(cls, kept: Tensor) -> PretendTensor:
        made: PretendTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            kept.shape,
            strides=kept.stride(),
            storage_offset=kept.storage_offset(),
            dtype=kept.dtype,
            device="meta",
            requires_grad=kept.requires_grad,
        )
        made.kept = kept.detach()
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PretendTensor({self.kept!r})"

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in _WHERE:
            return _WHERE[function]
        if function in _NOT_ON_CUDA:
            raise TypeError("can't convert cuda:0 device type tensor to numpy: use Tensor.cpu()")
        if function is torch.where:  # torch would put its numbers onto the meta device
            args = tuple(torch.tensor(x) if isinstance(x, float) else x for x in args)
        return super().__torch_function__(function, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        _check_places(operation, args, kwargs)
        to_host = str(kwargs.get("device")) == "cpu"
        if kwargs.get("device") is not None:
            kwargs["device"] = _HOST
        plain = tree_map_only(Tensor, _kept, (args, kwargs))
        result = operation(*plain[0], **plain[1])
        if to_host or operation is torch.ops.aten._local_scalar_dense.default:
            return result
        wrapped = tree_map_only(Tensor, PretendTensor, result)
        return return_and_correct_aliasing(operation, args, kwargs, wrapped)


def _kept(x: Tensor) -> Tensor:
    if isinstance(x, PretendTensor):
        return x.kept
    return torch.zeros_like(x, device=_HOST) if x.is_meta else x  # a gradient that there is not


def _check_places(operation: Any, *given: Any) -> None:
    """A tensor of the host may go along where it is a single number, as on a GPU."""
    for value in tree_flatten(given)[0]:
        if isinstance(value, Tensor) and value.ndim and not value.is_meta:
            raise RuntimeError(
                f"{operation}: expected all tensors to be on the same device, but found at least "
                f"two devices, cuda:0 and cpu (of shape {tuple(value.shape)})"
            )


class _Gpu(TorchFunctionMode):
    """What is made on ``cuda``, or moved there or back."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function in _MOVES:
            return _moved(function, args, kwargs)
        if not _on_cuda(kwargs.get("device")):
            return function(*args, **kwargs)
        like = any(isinstance(value, PretendTensor) for value in args)
        if like:  # such as x.new_zeros(…, device=x.device)
            return function(*args, **kwargs | {"device": None})
        return PretendTensor(function(*args, **kwargs | {"device": _HOST}))


def _moved(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x, *rest = args
    named = [kwargs.get("device"), *rest]
    place = next((p for p in named if isinstance(p, (str, torch.device))), None)
    if function is Tensor.cpu:
        place = _HOST
    if function is Tensor.cuda:
        place = _CUDA
    if place is None:
        return function(*args, **kwargs)  # type: ignore[no-any-return]
    kind = next((p for p in (kwargs.get("dtype"), *rest) if isinstance(p, torch.dtype)), None)
    x = _Move.apply(x, _on_cuda(place))
    return x if kind is None else Tensor.to(x, kind)


class _Move(torch.autograd.Function):
    """To the GPU, or back; gradients go the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: bool) -> Tensor:
        ctx.there = isinstance(x, PretendTensor)
        if ctx.there == there:
            return x.view_as(x)
        return PretendTensor(x.detach().clone()) if there else x.kept.clone()  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Move.apply(grads[0], ctx.there), None


def _on_cuda(place: Any) -> bool:
    return place is not None and str(place).startswith("cuda")


_GENERATOR = torch.Generator


def _generator(device: object = _HOST) -> torch.Generator:
    """One of the host, in the place of one of the GPU: the draws are the same."""
    return _GENERATOR()


@contextlib.contextmanager
def pretend_gpu() -> Iterator[None]:
    """While it lasts, torch has a GPU."""
    with (
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch("torch.cuda.get_device_name", return_value="pretended"),
        mock.patch("torch.Generator", _generator),
        _Gpu(),
    ):
        yield
