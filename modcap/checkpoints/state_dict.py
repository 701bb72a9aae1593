"""Reads tensors from ``.safetensors`` and ``.pth`` files; pickled code is refused, never run."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from modcap.checkpoints.key_names import is_average
from modcap.checkpoints.plain_tensors import as_plain
from modcap.checkpoints.sets_of_weights import WRAPPERS, choose, is_extra, refuse_choice
from modcap.core.errors import InputError
from modcap.core.messages import first_line

__all__ = ["StateDict", "read"]

_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar")
_COUNT = "n_averaged"  # which AveragedModel keeps beside its module
_CODE = re.compile(r"global|reduce|allowlist|build", re.IGNORECASE)  # what torch refuses to call
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile


@dataclass(frozen=True)
class StateDict:
    """Tensors by name.

    Attributes:
        versions: what torch keeps beside them for each module, by the module's name: the version
            of its form, which some modules ask for.
        others: what else there was to choose, for people.
        kind: ``raw`` or ``ema`` of what is still to be chosen, by names.
        extra: what modules keep beside tensors (``get_extra_state``), by name.
        doubts: what else may have been meant, for people.
    """

    tensors: dict[str, Tensor]
    versions: dict[str, Any] = field(default_factory=dict)
    others: str = ""
    kind: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()


def read(file: Path, data: bytes, kind: str | None = None) -> StateDict:
    """The state dict in a file, without the wrappers and prefixes that training scripts add.

    Args:
        file: decides the format by its suffix, and is named in errors.
        data: its content.
        kind: ``raw`` or ``ema``, where training kept both; raw ones are taken if it is not said.

    Raises:
        InputError: the file is damaged, holds code, no state dict, or tensors that are no weights.
    """
    if file.suffix == ".safetensors":
        found = _flat(StateDict(_read_safetensors(file, data)), file, kind)
    elif file.suffix in _PICKLED:
        found = _chosen(_read_pickled(file, data), file, kind)
    else:
        raise InputError(
            f"checkpoint {file} has no known suffix: give .pt2, .safetensors, .pt or .pth"
        )
    where = f"checkpoint {file}"
    plain = {name: as_plain(name, tensor, where) for name, tensor in found.tensors.items()}
    return _unprefixed(replace(found, tensors=plain))


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
    said = first_line(error)
    if said.startswith("Weights only load failed"):  # of what is no pickle at all
        said = "it is nothing that torch.save writes"
    return InputError(
        f"checkpoint {file} cannot be read ({said}): "
        f"it is damaged or no file of weights, copy or download it again"
    )


def _chosen(content: Any, file: Path, kind: str | None) -> StateDict:
    """The raw or the averaged weights of what a training script saved."""
    chosen = choose(content, file, kind)
    found = _of_content(chosen.content, file)
    if chosen.averaged:
        return replace(found, others=chosen.others, doubts=chosen.doubts)
    return replace(_flat(found, file, kind), doubts=chosen.doubts)


def _flat(found: StateDict, file: Path, kind: str | None) -> StateDict:
    """Weights of which a part may be averaged, as names say."""
    if not any(map(is_average, found.tensors)):
        refuse_choice(kind, "raw", file)
    return replace(found, kind=kind)


def _of_content(content: Any, file: Path) -> StateDict:
    """``content`` as a state dict."""
    if not isinstance(content, Mapping):
        raise InputError(
            f"checkpoint {file} holds a {type(content).__name__}, not a dictionary of tensors: "
            f"save model.state_dict()"
        )
    other = [
        str(k) for k, value in content.items() if not (isinstance(value, Tensor) or is_extra(k))
    ]
    if other or not content:
        found = f"{other[0]} is no tensor" if other else "it is empty"
        raise InputError(
            f"checkpoint {file} is not a state dict ({found}): "
            f"save model.state_dict(), alone or under one of {', '.join(WRAPPERS)}"
        )
    versions = getattr(content, "_metadata", None)
    known = versions if isinstance(versions, Mapping) else {}
    return StateDict(
        {str(key): value for key, value in content.items() if not is_extra(key)},
        {str(name): value for name, value in known.items()},
        extra={str(key): value for key, value in content.items() if is_extra(key)},
    )


def _unprefixed(found: StateDict) -> StateDict:
    tensors, versions = dict(found.tensors), found.versions
    if _COUNT in tensors and all(name.startswith(("module.", _COUNT)) for name in tensors):
        del tensors[_COUNT]
    for prefix in _PREFIXES * 2:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
            versions = {
                f"{name}.".removeprefix(prefix).removesuffix("."): version
                for name, version in versions.items()
                if f"{name}.".startswith(prefix)
            }
    return replace(found, tensors=tensors, versions=versions)
