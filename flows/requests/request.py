"""What a user asks for, and its preparation: checkpoint and images become a cell of a plan."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from modcap.checkpoints import checkpoint as checkpoints
from modcap.checkpoints.published_preprocess import published_preprocess
from modcap.core.errors import InputError, Unavailable
from modcap.data import classes as names
from modcap.data import sources as data
from modcap.data.image_set import ImageSet
from modcap.data.preprocess import Preprocess
from modcap.export.onnx_export import require_onnx
from modcap.graph.network import Network, build
from modcap.jobs.job import Cell
from modcap.ptq.capacity import signature
from modcap.recipe import Homogeneity, Recipe, Selection
from modcap.tasks.storage.objects import cache_folder, fetch
from modcap.tasks.storage.store import Store

__all__ = ["Prepared", "Request", "prepare"]


_MODEL_NAME = re.compile(r"(?!\.*$)[^/:'\"`\\]+")  # what MLflow takes and its searches read


class Request(BaseModel):
    """One quantization, as the command line, a deployment or a schedule asks for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str = Field(
        description="local path or s3:// address of .pt2, .safetensors, .pt, .pth"
    )
    arch: str | None = Field(
        None, description="torchvision:NAME, timm:NAME or package.module:factory; not for .pt2"
    )
    data: str = Field(description="fashion-mnist[:DIR], an ImageFolder directory, or an .npz")
    eval_data: str | None = Field(None, description="where test images come from, if elsewhere")
    eval_images: int | None = Field(None, ge=1, description="test images to use; all by default")
    preprocess: str | None = Field(None, description="such as 'mean=0.286,std=0.353'")
    classes: str | None = Field(
        None,
        description="file or folder of class names; by default the folders of data",
    )
    name: str | None = Field(None, description="registered model; by default the file's stem")
    onnx: bool = Field(False, description="register the ONNX form too; needs modcap[export]")
    recipe: Recipe = Recipe()

    @property
    def model_name(self) -> str:
        stem = self.checkpoint.rstrip("/").rsplit("/", 1)[-1].rsplit(".", 1)[0]
        return self.name or stem

    @model_validator(mode="after")
    def _may_be_registered(self) -> Request:
        if not _MODEL_NAME.fullmatch(self.model_name):
            raise ValueError(
                f"a registered model cannot be called {self.model_name!r}: give a name without "
                "slash, colon, quote or backslash"
            )
        return self


@dataclass(frozen=True)
class Prepared:
    """A request whose input was read and found good."""

    request: Request
    cell: Cell
    calibration: ImageSet
    evaluation: ImageSet
    source: dict[str, str]
    fp_bytes: int
    classes: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()

    def upload(self, store: Store) -> None:
        """Puts what jobs read into the store, each once, under its digest."""
        for value in (self.cell.network, self.calibration, self.evaluation):
            store.upload_input(value.digest, value.to_bytes())

    def with_recipe(self, recipe: Recipe, name: str) -> Prepared:
        """The same checkpoint and images by another recipe (of equal calibration and seed).

        Raises:
            InputError: its k is more than the network has boundaries.
        """
        _check_selection(self.cell.network, recipe)
        cell = replace(self.cell, recipe=recipe, name=name)
        request = self.request.model_copy(update={"recipe": recipe})
        return replace(self, request=request, cell=cell)


def local_path(address: str) -> Path:
    """A local path of what may lie in S3."""
    if address.startswith("s3://"):
        return fetch(address, cache_folder("fetched"))
    return Path(address)


@contextlib.contextmanager
def _blaming_images(which: str = "") -> Iterator[None]:
    """Whatever is wrong with images may be mended, and no checkpoint is to blame: Unavailable."""
    try:
        yield
    except InputError as error:
        raise Unavailable(which + str(error)) from None


def images_of(images: data.Images, preprocess: Preprocess) -> ImageSet:
    return ImageSet(
        torch.from_numpy(images.images),
        torch.from_numpy(images.labels),
        tuple(preprocess.mean),
        tuple(preprocess.std),
    )


def pool_of(spec: str, preprocess: Preprocess, classes: Sequence[str] | None = None) -> data.Images:
    """The images that calibration draws from."""
    with _blaming_images():
        place = str(local_path(spec))
        return data.load(place, split="calibration", preprocess=preprocess, classes=classes)


def evaluation_images(
    spec: str,
    preprocess: Preprocess,
    limit: int | None,
    split: data.Split = "evaluation",
    classes: Sequence[str] | None = None,
) -> data.Images:
    """The images, at most ``limit`` of them, that accuracy is measured on."""
    with _blaming_images():
        place = str(local_path(spec))
        return data.load(place, split=split, preprocess=preprocess, limit=limit, classes=classes)


def classes_of(path: str | None) -> tuple[str, ...] | None:
    """The names of classes in a file or folder, where one is given."""
    return None if path is None else names.read(local_path(path))


def prepare(request: Request) -> Prepared:
    """Reads checkpoint and images and checks that they, and the recipe, fit each other.

    Raises:
        InputError: with one line that says what is wrong, where, and how to mend it.
        Unavailable: checkpoint or images cannot be had, now.
    """
    recipe = request.recipe
    if request.onnx:
        require_onnx()
    checkpoint = checkpoints.load(local_path(request.checkpoint), request.arch)
    preprocess = (
        Preprocess.parse(request.preprocess)
        if request.preprocess
        else published_preprocess(checkpoint.architecture)
    )
    known = classes_of(request.classes)
    pool = pool_of(request.data, preprocess, known)
    known = known or pool.classes
    with _blaming_images():
        chosen = data.calibration(pool, recipe.calibration, recipe.seed)
    calibration = images_of(chosen, preprocess)
    tests = (
        evaluation_images(request.eval_data, preprocess, request.eval_images, "all", known)
        if request.eval_data
        else evaluation_images(request.data, preprocess, request.eval_images, classes=known)
    )
    evaluation = images_of(tests, preprocess)
    outputs = checkpoints.check_input(checkpoint, calibration.normalized(0, 2))
    measured = f"data {request.eval_data or request.data}"
    with _blaming_images():
        names.check_count(tests.classes, outputs, measured)
    with _blaming_images(f"{measured}: "):
        evaluation.check_labels(outputs)
    source = {
        "checkpoint": request.checkpoint,
        "checkpoint_digest": checkpoint.digest,
        "architecture": checkpoint.architecture,
        "data": request.data,
        "data_digest": pool.digest,
        "preprocess": str(preprocess),
    }
    network = build(checkpoint.model, calibration.normalized(0, 2), source)
    _check_selection(network, recipe)
    name = f"{request.model_name} {recipe.bits} {recipe.method.name}"
    pixels = evaluation.pixels.nbytes
    cell = Cell(network, calibration.digest, evaluation.digest, recipe, name, pixels)
    doubts = tuple(filter(None, [*checkpoint.warnings, names.doubt(tests.classes)]))
    for doubt in doubts:
        _say(doubt)
    doubts += network.notices  # which were said when it was built
    return Prepared(
        *(request, cell, calibration, evaluation, source, _fp_bytes(network)),
        classes=tests.classes,
        warnings=doubts,
    )


@functools.cache
def _say(doubt: str) -> None:
    """Once, however often the same input is prepared."""
    logging.getLogger("modcap").warning(doubt)


def _fp_bytes(network: Network) -> int:
    """Bytes of the folded network's weights in float32: what quantization is compared with."""
    modules: Sequence[torch.nn.Module] = network.partition.modules
    return sum(p.numel() * 4 for module in modules for p in module.parameters())


def _check_selection(network: Network, recipe: Recipe) -> None:
    """Refuses, before any work is spent, a k that the network's boundaries cannot meet."""
    if recipe.k is None or not recipe.method.learns or recipe.selection is Selection.EXPLICIT:
        return
    marks = [signature(module) for module in network.partition.modules]
    same = [a == b for a, b in itertools.pairwise(marks)]
    allowed = sum(same) if recipe.homogeneity is Homogeneity.PAPER else len(same)
    if recipe.k > allowed:
        hint = f"; {len(same)} with homogeneity 'any'" if allowed < len(same) else ""
        raise InputError(
            f"--k {recipe.k} is larger than the {allowed} boundaries that may be selected{hint}: "
            f"choose --k 0 to {allowed}"
        )
