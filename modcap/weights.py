"""Reads tensors from ``.safetensors`` and ``.pth`` files; pickled code is refused, never run."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from modcap.errors import InputError
from modcap.messages import first_line
from modcap.plain import as_plain

__all__ = ["StateDict", "read"]

_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_CODE = re.compile(r"global|reduce|allowlist|build", re.IGNORECASE)  # what torch refuses to call
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile


@dataclass(frozen=True)
class StateDict:
    """Tensors by name.

    Attributes:
        versions: what torch keeps beside them for each module, by the module's name: the version
            of its form, which some modules ask for.
    """

    tensors: dict[str, Tensor]
    versions: dict[str, Any] = field(default_factory=dict)


def read(file: Path, data: bytes) -> StateDict:
    """The state dict in a file, without the wrappers and prefixes that training scripts add.

    Args:
        file: decides the format by its suffix, and is named in errors.
        data: its content.

    Raises:
        InputError: the file is damaged, holds code, no state dict, or tensors that are no weights.
    """
    if file.suffix == ".safetensors":
        found = StateDict(_read_safetensors(file, data))
    elif file.suffix in _PICKLED:
        found = _unwrapped(_read_pickled(file, data), file)
    else:
        raise InputError(
            f"checkpoint {file} has no known suffix: give .pt2, .safetensors, .pt or .pth"
        )
    where = f"checkpoint {file}"
    plain = {name: as_plain(name, tensor, where) for name, tensor in found.tensors.items()}
    return _unprefixed(StateDict(plain, found.versions))


def _read_safetensors(file: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # of the format, of types that torch lacks, of sizes beyond 2^63
        raise InputError(
            f"checkpoint {file} is no valid safetensors file ({first_line(error)}): "
            f"it is damaged or cut short, copy or download it again"
        ) from error


def _read_pickled(file: Path, data: bytes) -> Any:
    try:
        _check_sizes(data)
        with warnings.catch_warnings():  # of tensors of kinds that are refused by name
            warnings.simplefilter("ignore")
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


def _check_sizes(data: bytes) -> None:
    """An archive of torch is not compressed: what inflates is not from torch, and has no bound."""
    if zipfile.is_zipfile(BytesIO(data)):
        with zipfile.ZipFile(BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(data):
                raise ValueError("it holds more than its size, and torch.save does not compress")


def _damaged(file: Path, error: Exception) -> InputError:
    return InputError(
        f"checkpoint {file} cannot be read ({first_line(error)}): "
        f"it is damaged or no file of weights, copy or download it again"
    )


def _unwrapped(content: Any, file: Path) -> StateDict:
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
    versions = getattr(content, "_metadata", None)
    known = versions if isinstance(versions, Mapping) else {}
    return StateDict(
        {str(key): value for key, value in content.items()},
        {str(name): value for name, value in known.items()},
    )


def _unprefixed(found: StateDict) -> StateDict:
    tensors, versions = found.tensors, found.versions
    for prefix in _PREFIXES * 2:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
            versions = {
                f"{name}.".removeprefix(prefix).removesuffix("."): version
                for name, version in versions.items()
                if f"{name}.".startswith(prefix)
            }
    return StateDict(tensors, versions)
