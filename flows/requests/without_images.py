"""Preparation for what needs no images: data-free capacity, and plans."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from modcap.checkpoints import checkpoint as checkpoints
from modcap.checkpoints.checkpoint import Checkpoint
from modcap.checkpoints.published_preprocess import published_preprocess
from modcap.core.canonical import digest
from modcap.core.errors import InputError
from modcap.data import sources
from modcap.data.image_set import ImageSet
from modcap.flows.requests.asked import Request
from modcap.flows.requests.local_path import local_path
from modcap.flows.requests.request import Prepared, check_recipe, prepare
from modcap.graph.network import build
from modcap.jobs.job import Cell
from modcap.ptq.metric_name import MetricName
from modcap.recipe import CapacityKind

__all__ = ["prepare_to_look"]

_SIZES = (224, 32, 28, 64, 128, 256, 299, 384)  # the first that a network takes
_UNKNOWN = digest(b"no images")  # in the place of their digest: no job with it was ever done


def prepare_to_look(request: Request) -> Prepared:
    """As :func:`prepare` where images are given; else with random ones of the network's shape.

    Raises:
        InputError: as there; or capacity is to be measured on images, and there are none.
    """
    if request.data is not None:
        return prepare(request)
    if request.recipe.capacity is CapacityKind.DATA_DEPENDENT:
        raise InputError(
            f"--capacity data-dependent measures on images: give --data ({sources.HELP}), or "
            "--capacity data-free"
        )
    checkpoint = checkpoints.load(local_path(request.checkpoint), request.arch)
    pixels = torch.randn(2, *_shape(checkpoint), generator=torch.Generator().manual_seed(0))
    network = build(checkpoint.model, pixels, strict=request.strict)
    check_recipe(network, request.recipe)
    channels = pixels.shape[1]
    count = request.recipe.optimiser.batch_size
    images = ImageSet(
        pixels.repeat(-(-count // 2), 1, 1, 1)[:count],
        torch.zeros(count, dtype=torch.int64),
        (0.0,) * channels,
        (1.0,) * channels,
    )
    metric = MetricName(name=request.metric or "")
    name = f"{request.label} {request.recipe.bits_label} {request.recipe.method.name}"
    return Prepared(
        request=request,
        cell=Cell(network, _UNKNOWN, _UNKNOWN, request.recipe, name, metric=metric),
        source={"checkpoint": request.checkpoint, "checkpoint_digest": checkpoint.digest},
        fp_bytes=network.float_bytes,
        measured="no images",
        warnings=(*checkpoint.warnings, *network.notices),
        network=network,
        calibration=images,
        evaluation=images,
    )


def _shape(checkpoint: Checkpoint) -> tuple[int, int, int]:
    """(C, H, W) of images that it takes."""
    if isinstance(checkpoint.model, ExportedProgram):
        return _shape_of_program(checkpoint.model, checkpoint.path)
    channels, size = _published(checkpoint)
    first = next(m for m in checkpoint.model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    if not channels:
        channels = first.in_channels if isinstance(first, nn.Conv2d) else 3
    for side in (size,) if size else _SIZES:
        if _takes(checkpoint.model, torch.zeros(2, channels, side, side)):
            return channels, side, side
    raise InputError(
        f"{checkpoint.path}: no size of images is known that the network takes: give --data"
    )


def _shape_of_program(program: ExportedProgram, path: str) -> tuple[int, int, int]:
    named = set(program.graph_signature.user_inputs)
    (image,) = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in named]
    shape = image.meta["val"].shape
    if len(shape) != 4 or not all(isinstance(size, int) for size in shape[1:]):
        raise InputError(f"{path} says no size of images, only {tuple(shape)}: give --data")
    channels, height, width = shape[1:]
    return int(channels), int(height), int(width)


def _published(checkpoint: Checkpoint) -> tuple[int, int]:
    """Channels and size that are published for the architecture; 0 where nothing is."""
    try:
        found = published_preprocess(checkpoint.architecture)
    except InputError:
        return 0, 0
    return found.channels, found.crop or 0


def _takes(model: nn.Module, images: Tensor) -> bool:
    try:
        with torch.no_grad():
            model(images)
    except Exception:  # of the network's own code
        return False
    return True
