"""What tensors of a checkpoint must be: dense, on the CPU, of real numbers, stored in full."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modcap.core.errors import InputError

__all__ = ["as_plain", "fitting"]

_REAL = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}


def as_plain(name: str, tensor: Tensor, where: str) -> Tensor:
    """``tensor`` without its history.

    Raises:
        InputError: it is of a kind that weights cannot be; the line says what to do.
    """
    found = _wrong(tensor)
    if found:
        what, mend = found
        raise InputError(f"{where}: tensor {name} is {what}: {mend}")
    return tensor.detach().resolve_conj().resolve_neg()


def _wrong(tensor: Tensor) -> tuple[str, str] | None:
    """What it is instead, and what to do; asked for in the order in which tensors answer."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
        return f"a {type(tensor).__name__}", "save plain tensors, as before it was converted"
    if tensor.is_nested:
        return "nested", "save its parts as tensors of their own"
    if tensor.is_quantized:
        return f"quantized ({kind})", "give the checkpoint of before, in floating point"
    if tensor.layout != torch.strided:
        return "sparse", "save tensor.to_dense()"
    if tensor.device.type != "cpu":
        return f"on {tensor.device}, without values", "save it from a device that has them"
    if tensor.dtype not in _REAL:
        return kind, "save it as float32"
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return f"of shape {tuple(tensor.shape)}, and larger than what is stored of it", (
            "save tensor.clone()"
        )
    return None


def fitting(name: str, tensor: Tensor, expected: Tensor, where: str) -> Tensor:
    """``tensor`` in the type of ``expected``, without a loss that nobody asked for.

    Raises:
        InputError: integers or truth values stand where floating-point numbers belong, or numbers
            that are none where integers belong.
    """
    floating = expected.is_floating_point()
    if floating and tensor.is_floating_point():
        return tensor
    cast = tensor.to(expected.dtype)
    if floating or not torch.equal(cast.to(tensor.dtype), tensor):
        kinds = [str(t.dtype).removeprefix("torch.") for t in (tensor, expected)]
        raise InputError(
            f"{where}: tensor {name} is {kinds[0]} where the network has {kinds[1]}: give the "
            f"checkpoint of before it was quantized or converted"
        )
    return cast
