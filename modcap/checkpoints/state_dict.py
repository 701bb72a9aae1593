"""Reads tensors from ``.safetensors`` and ``.pth`` files; pickled code is refused, never run."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from modcap.core.errors import InputError
from modcap.core.messages import first_line

__all__ = ["read"]

_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_CODE = re.compile(r"global|reduce|allowlist|build", re.IGNORECASE)  # what torch refuses to call
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile


def read(file: Path, data: bytes) -> dict[str, Tensor]:
    """The state dict in a file, without the wrappers and prefixes that training scripts add.

    Args:
        file: decides the format by its suffix, and is named in errors.
        data: its content.

    Raises:
        InputError: the file is damaged, holds code, or no state dict.
    """
    if file.suffix == ".safetensors":
        return _unprefixed(_read_safetensors(file, data))
    if file.suffix in _PICKLED:
        return _unprefixed(_unwrapped(_read_pickled(file, data), file))
    raise InputError(f"checkpoint {file} has no known suffix: give .pt2, .safetensors, .pt or .pth")


def _read_safetensors(file: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(
            f"checkpoint {file} is no valid safetensors file ({first_line(error)}): "
            f"it is damaged or cut short, copy or download it again"
        ) from error


def _read_pickled(file: Path, data: bytes) -> Any:
    try:
        return torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not _CODE.search(str(error)):
            raise _damaged(file, error) from error
        raise InputError(
            f"checkpoint {file} is a pickle that needs code to load, which modcap never executes: "
            f"save tensors only, with torch.save(model.state_dict(), …)"
        ) from error
    except Exception as error:  # torch raises anything on a damaged file
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> InputError:
    return InputError(
        f"checkpoint {file} cannot be read ({first_line(error)}): "
        f"it is damaged or no file of weights, copy or download it again"
    )


def _unwrapped(content: Any, file: Path) -> dict[str, Tensor]:
    """The state dict inside what training scripts commonly save around it."""
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise InputError(
            f"checkpoint {file} holds a {type(content).__name__}, not a dictionary of tensors: "
            f"save model.state_dict()"
        )
    other = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if other or not content:
        found = f"{other[0]} is no tensor" if other else "it is empty"
        raise InputError(
            f"checkpoint {file} is not a state dict ({found}): "
            f"save model.state_dict(), alone or under one of {', '.join(_WRAPPERS)}"
        )
    return {str(key): value for key, value in content.items()}


def _unprefixed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES * 2:
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): t for name, t in weights.items()}
    return weights
