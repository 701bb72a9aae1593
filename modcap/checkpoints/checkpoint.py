"""Reads a trained model from a file, without executing code that the file contains."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from modcap.checkpoints import (
    arch_options,
    exported_for,
    file_kind,
    key_names,
    sets_of_weights,
    stored_in_parts,
)
from modcap.checkpoints import architecture as architectures
from modcap.checkpoints import export_archive as pt2
from modcap.checkpoints import state_dict as weights
from modcap.checkpoints.plain_tensors import fitting
from modcap.checkpoints.state_dict import StateDict
from modcap.core import files
from modcap.core.errors import InputError
from modcap.core.messages import first_line
from modcap.graph.outputs import named_values

__all__ = ["Checkpoint", "check_input", "load"]

_UNUSED = "num_batches_tracked"  # no part of inference
_EXTRA = "_extra_state"  # what a module keeps beside tensors
_NAMED = 3  # keys to name in an error
_LONG = 100  # characters of one


@dataclass(frozen=True)
class Checkpoint:
    """A trained model.

    Attributes:
        model: in eval mode, float32, on the CPU.
        architecture: such as ``torchvision:resnet18``; ``pt2`` for an archive.
        digest: sha256 of architecture and tensors (of an archive, of its graph too); the same
            whatever the path or the format of the file.
        path: as given.
        size_bytes: of the file.
        warnings: what may not be as it was meant.
    """

    model: nn.Module | ExportedProgram = field(repr=False)
    architecture: str
    digest: str
    path: str
    size_bytes: int
    warnings: tuple[str, ...] = ()


def load(path: str | Path, architecture: str | None = None) -> Checkpoint:
    """Reads a ``.pt2`` archive, or weights in ``.safetensors``, ``.pt`` or ``.pth``.

    Args:
        path: a local file.
        architecture: for weights; torchvision:NAME, timm:NAME or package.module:factory, with
            options that weights do not tell: ``torchvision:googlenet?transform_input=true``. Where
            a file holds both, ``?weights=ema`` takes the averaged ones.

    Raises:
        InputError: the file is missing, damaged, holds code, NaN or infinity, or does not fit the
            architecture.
    """
    file = Path(path)
    data = _bytes(file)
    file_kind.check(file, data)
    graph = ""
    doubts: tuple[str, ...] = ()
    model: nn.Module | ExportedProgram
    if file.suffix == ".pt2":
        if architecture is not None:
            raise InputError(f"{path} describes its own architecture: leave out --arch")
        model, graph = pt2.read(data, str(path))
        _check_archive(model, str(path))
        exported_for.check_mode(model, str(path))
    else:
        if architecture is None:
            raise InputError(
                f"{path} holds weights only: say --arch torchvision:NAME, timm:NAME or "
                f"package.module:factory"
            )
        named = arch_options.parse(architecture)
        found = weights.read(file, data, named.weights)
        architecture = str(named)
        model = architectures.build(architecture, found.tensors, named.weights)
        others, doubts = _fill(model, found, architecture, str(path))
        if named.weights is None and others:
            doubts += (_both(str(path), architecture, others),)
    name = architecture or "pt2"
    return Checkpoint(model, name, _digest(name, graph, model), str(path), len(data), doubts)


def _both(where: str, architecture: str, others: str) -> str:
    mark = "&" if "?" in architecture else "?"
    return (
        f"checkpoint {where} holds raw and averaged (EMA) weights, and the raw ones are taken: say "
        f"--arch {architecture}{mark}weights={others} for the others, or weights=raw to agree"
    )


def _bytes(file: Path) -> bytes:
    if file.is_dir():
        raise InputError(f"checkpoint {file} is a directory: give the file of weights inside it")
    data = files.read(file, f"checkpoint {file}")
    if not data:
        raise InputError(f"checkpoint {file} is empty: copy or download it again")
    return data


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(name[:_LONG] for name in names[:_NAMED]) + more


def _check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise InputError(
                f"checkpoint {where}: tensor {name} has {bad} values that are NaN or infinite: "
                f"training diverged, or the file is damaged; use another checkpoint"
            )


def _fill(
    model: nn.Module, found: StateDict, architecture: str, where: str
) -> tuple[str, tuple[str, ...]]:
    """Puts tensors into ``model``, which must match them name by name, in shape and in kind.

    Returns:
        what else there was to choose, and what may not be as it was meant.
    """
    whole = model.state_dict()
    expected = {name: t for name, t in whole.items() if not name.endswith(_EXTRA)}
    complaint = f"{where} does not fit --arch {architecture}"
    joined = stored_in_parts.join(found.tensors, expected)
    fitting_names = key_names.as_expected(joined.tensors | found.extra, whole, found.kind)
    if len(fitting_names.prefixes) > 1:
        several = " and ".join(f"'{prefix[:_LONG]}'" for prefix in fitting_names.prefixes[:_NAMED])
        raise InputError(
            f"{complaint}: it holds weights of it more than once, under {several}: save one of "
            f"them alone"
        )
    if fitting_names.only:
        sets_of_weights.refuse_choice(found.kind, fitting_names.only, Path(where))
    given = fitting_names.entries
    tensors = {name: value for name, value in given.items() if not name.endswith(_EXTRA)}
    _check_names(expected, tensors, complaint)
    state = OrderedDict(
        (name, fitting(name, tensors[name], tensor, f"checkpoint {where}"))
        for name, tensor in expected.items()
        if name in tensors and not name.endswith(_UNUSED)
    )
    counts = [name for name in expected if name.endswith(_UNUSED) and name in tensors]
    state.update((name, tensors[name]) for name in counts)  # averages of them are no integers
    extra = [name for name in whole if name.endswith(_EXTRA)]
    state.update((name, given[name]) for name in extra if name in given)
    # Files without versions (safetensors has none) are taken to be of today's form.
    versions = {**getattr(whole, "_metadata", {}), **found.versions}
    state._metadata = versions  # type: ignore[attr-defined]
    try:
        model.load_state_dict(state, strict=False)
    except Exception as error:  # of the network's own code
        raise InputError(f"{complaint}: {first_line(error)}") from error
    model.float().eval().requires_grad_(False)
    filled = model.state_dict()
    _check_finite({name: filled[name] for name in tensors if name in filled}, where)
    lacking = [name for name in extra if name not in given]
    doubts = {
        f"lacks {_names(lacking)}: it is as --arch {architecture} makes it": lacking,
        f"stores parts of weights ({', '.join(joined.kinds)}): weights were computed of them as "
        f"torch.nn.utils does": joined.kinds,
        f"holds averaged weights under other names ({_names([*fitting_names.left])}): the raw ones "
        f"are taken": fitting_names.left if found.kind is None else (),
        **dict.fromkeys(found.doubts, True),
    }
    return found.others or fitting_names.others, tuple(
        f"checkpoint {where} {doubt}" for doubt, there in doubts.items() if there
    )


def _check_names(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor], complaint: str
) -> None:
    missing = [n for n in expected if n not in given and not n.endswith(_UNUSED)]
    unexpected = sorted(n for n in given if n not in expected and not n.endswith(_UNUSED))
    other = [
        f"{n} is {tuple(given[n].shape)} for {tuple(expected[n].shape)}"
        for n in expected
        if n in given and given[n].shape != expected[n].shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": other}
    if any(found.values()):
        details = "; ".join(f"{what} {_names(names)}" for what, names in found.items() if names)
        prefix = key_names.common_prefix(given)
        seen = f"all its names begin with '{prefix[:_LONG]}'; " if prefix else ""
        parted = any(map(stored_in_parts.is_part, unexpected))
        mend = stored_in_parts.MEND if parted else "name the architecture that was trained"
        raise InputError(f"{complaint}: {details}; {seen}{mend}")


def _check_archive(program: ExportedProgram, where: str) -> None:
    tensors: dict[str, Tensor] = dict(program.state_dict)
    _check_finite(tensors, where)
    for name, tensor in tensors.items():
        floating = tensor.is_floating_point()
        if tensor.device.type != "cpu" or (floating and tensor.dtype != torch.float32):
            raise InputError(
                f"checkpoint {where}: {name} is {tensor.dtype} on {tensor.device}: "
                f"export the network in float32 on the CPU"
            )


def _digest(architecture: str, graph: str, model: nn.Module | ExportedProgram) -> str:
    if isinstance(model, ExportedProgram):
        tensors = {**model.state_dict, **model.constants}
    else:
        tensors = {n: t for n, t in model.state_dict().items() if not n.endswith(_EXTRA)}
    hasher = sha256(f"{architecture}\n{graph}\n".encode())
    for name in sorted(tensors):
        if not name.endswith(_UNUSED):
            tensor = tensors[name].detach().contiguous()
            hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            hasher.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()


def check_input(
    model: Checkpoint | Callable[[Tensor], Any] | ExportedProgram, images: Tensor
) -> int | None:
    """Runs the first two images through and returns the number of classes; None where the model
    returns something else than logits, such as maps, or several tensors.

    Args:
        model: as loaded.
        images: (N, C, H, W) float32, preprocessed, N at least 2.

    Raises:
        InputError: the model does not take images of this shape, or gives no numbers for them.
    """
    network = model.model if isinstance(model, Checkpoint) else model
    given = " × ".join(str(n) for n in images.shape[1:])
    x = images[:2]
    try:
        with torch.no_grad():
            if isinstance(network, ExportedProgram):
                found = exported_for.answer(network, x)
            else:
                found = network(x)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"the network does not take images of {given} (channels × height × width): "
            f"{first_line(error)}; give it the data it was trained on, or --preprocess"
        ) from error
    values = list(named_values(found))
    for name, value in values:
        _check_output(value, f" in output {name!r}" if name else "", len(x), given)
    if not values:
        raise InputError(f"the network answers images of {given} with nothing")
    single = values[0][1]
    return int(single.shape[1]) if len(values) == 1 and single.ndim == 2 else None


def _check_output(value: Any, where: str, count: int, given: str) -> None:
    """Refuses what is no tensor of finite numbers with a row for each of ``count`` images."""
    if not isinstance(value, Tensor) or value.ndim < 2 or len(value) != count:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"the network answers {count} images of {given} with {shape}{where}, not with tensors "
            f"that have a row for each image: give one that returns logits, maps, or several of "
            f"them"
        )
    if not torch.isfinite(value).all():
        raise InputError(f"the network answers images of {given} with NaN or infinity{where}")
