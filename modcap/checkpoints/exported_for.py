"""What a ``.pt2`` was exported for: in which mode, and for which images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from modcap.core.errors import InputError
from modcap.core.messages import first_line
from modcap.graph.trace import functional_program

__all__ = ["TRAINING", "answer", "check_mode", "check_shape", "runner", "trained"]

aten = torch.ops.aten
TRAINING = ("_native_batch_norm_legit_functional", "native_dropout")
_MODES: dict[Any, int] = {aten.batch_norm.default: 5, aten.dropout.default: 2}  # their argument
_FREE = "export it with dynamic_shapes=({0: torch.export.Dim('batch')},)"


def trained(where: str, operator: str) -> InputError:
    """That an archive was exported in training mode, which ``operator`` shows."""
    return InputError(
        f"{where} was exported in training mode ({operator}): call model.eval() before "
        f"torch.export.export"
    )


def check_mode(program: ExportedProgram, where: str) -> None:
    """Refuses what drops at random, or normalises by the batch at hand and keeps its statistics.

    Raises:
        InputError: the line says how to export it.
    """
    for node in program.graph.nodes:
        place = _MODES.get(node.target)
        statistics = node.target is not aten.batch_norm.default or node.args[3] is not None
        on = place is not None and len(node.args) > place and node.args[place] is True
        if statistics and (on or any(name in str(node.target) for name in TRAINING)):
            raise trained(where, str(node.target))


def answer(program: ExportedProgram, images: Tensor) -> Any:
    """What ``program`` gives for two images (2, C, H, W), whatever number it was exported for.

    Raises:
        InputError: it is for images of another shape, or for so many at a time.
    """
    sizes = _sizes(program)
    graph = functional_program(program)
    if sizes is None or len(sizes) != images.ndim:
        return _single(graph(images))
    check_shape(sizes[1:], tuple(images.shape[1:]))
    if not isinstance(sizes[0], int):
        return _single(graph(images))
    found = [_rows(graph, part, sizes[0]) for part in (images, images[:1])]
    return found[0]


def _single(found: Any) -> Any:
    """Graphs give tuples."""
    return found[0] if isinstance(found, tuple) and len(found) == 1 else found


def _sizes(program: ExportedProgram) -> tuple[Any, ...] | None:
    """Of the images in its example: numbers, and what is free."""
    names = set(program.graph_signature.user_inputs)
    values = [n.meta.get("val") for n in program.graph.nodes if n.name in names]
    return tuple(values[0].shape) if values and isinstance(values[0], Tensor) else None


def runner(program: ExportedProgram) -> Callable[[Tensor], Any]:
    """``program`` as a function of images, of however many, where :func:`answer` takes it."""
    graph = functional_program(program)
    return lambda images: _single(graph(images))


def check_shape(own: Sequence[Any], given: Sequence[int]) -> None:
    """Compares the sizes of one image that a file was exported for with those of an image; what is
    no number is free.

    Raises:
        InputError: they are others.
    """
    same = (not isinstance(a, int) or a == b for a, b in zip(own, given, strict=False))
    if len(own) == len(given) and all(same):
        return
    shape = " × ".join(str(size) if isinstance(size, int) else "any" for size in own)
    have = " × ".join(map(str, given))
    if len(own) == len(given) and own[-1] == given[0]:
        raise InputError(
            f"the file was exported for images of {shape}, with channels last, and modcap's are "
            f"{have}: export a network that takes channels first and permutes them itself"
        )
    raise InputError(
        f"the file was exported for images of {shape} (channels × height × width), and these "
        f"are {have}: give --preprocess with resize= and crop=, or export it for images of {have}"
    )


def _rows(graph: fx.GraphModule, images: Tensor, batch: int) -> Any:
    try:
        found = _single(graph(images))
        fits = not isinstance(found, Tensor) or len(found) == len(images)
        said = f"a result of shape {tuple(found.shape)}" if not fits else ""
    except Exception as error:
        fits, said = False, first_line(error)
    if not fits:
        raise InputError(
            f"the archive was exported for {batch} images at a time, and not for {len(images)} "
            f"({said}): {_FREE}"
        )
    return found
