"""What a user asks for, and its preparation: checkpoint and images become a cell of a plan."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from modcap.checkpoints import checkpoint as checkpoints
from modcap.checkpoints.published_preprocess import published_preprocess
from modcap.core.errors import InputError, Unavailable
from modcap.core.messages import first_line
from modcap.data import classes as names
from modcap.data import sources as data
from modcap.data.image_set import ImageSet
from modcap.data.preprocess import Preprocess
from modcap.export import EXPORTERS, require
from modcap.graph.network import Network, build
from modcap.jobs.job import Cell
from modcap.ptq.capacity import signature
from modcap.recipe import Homogeneity, Recipe, Selection
from modcap.tasks.storage.objects import cache_folder, fetch
from modcap.tasks.storage.store import Store

__all__ = ["BadImages", "Prepared", "Ready", "Request", "prepare", "prepare_all"]


_MODEL_NAME = re.compile(r"(?!\.*$)[^/:'\"`\\]+")  # what MLflow takes and its searches read


class BadImages(Unavailable):
    """Images that were read are not as they must be; better ones may lie there later."""


def known_formats(names: tuple[str, ...]) -> tuple[str, ...]:
    """``names``, if each is that of a format."""
    for name in names:
        if name not in EXPORTERS:
            raise ValueError(f"{name!r} is no format: give {', '.join(EXPORTERS)}")
    return names


class Request(BaseModel):
    """One quantization, as the command line, a deployment or a schedule asks for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str = Field(
        description="local path or s3:// address of .pt2, .safetensors, .pt, .pth"
    )
    arch: str | None = Field(
        None, description="torchvision:NAME, timm:NAME or package.module:factory; not for .pt2"
    )
    data: str = Field(description=f"images: {data.HELP}")
    eval_data: str | None = Field(None, description="where test images come from, if elsewhere")
    eval_images: int | None = Field(None, ge=1, description="test images to use; all by default")
    preprocess: str | None = Field(None, description="such as 'mean=0.286,std=0.353'")
    classes: str | None = Field(
        None,
        description="file or folder of class names; by default the folders of data",
    )
    name: str | None = Field(None, description="registered model; by default the file's stem")
    onnx: bool = Field(False, description="the same as exports [onnx]; needs modcap[export]")
    exports: tuple[str, ...] = Field((), description="formats to register too: onnx, pt2, …")
    recipe: Recipe = Recipe()

    @property
    def model_name(self) -> str:
        stem = self.checkpoint.rstrip("/").rsplit("/", 1)[-1].rsplit(".", 1)[0]
        return self.name or stem

    @property
    def formats(self) -> tuple[str, ...]:
        """What the version holds beside the artifact, each once."""
        return tuple(dict.fromkeys((*(("onnx",) if self.onnx else ()), *self.exports)))

    @field_validator("exports")
    @classmethod
    def _are_known(cls, exports: tuple[str, ...]) -> tuple[str, ...]:
        return known_formats(exports)

    @model_validator(mode="after")
    def _may_be_registered(self) -> Request:
        if not _MODEL_NAME.fullmatch(self.model_name):
            raise ValueError(
                f"a registered model cannot be called {self.model_name!r}: give a name without "
                "slash, colon, quote or backslash"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A request whose input was read and found good, as plans and reports need it."""

    request: Request
    cell: Cell
    source: dict[str, str]
    fp_bytes: int
    classes: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Prepared(Ready):
    """With what was read."""

    network: Network
    calibration: ImageSet
    evaluation: ImageSet

    def upload(self, store: Store) -> None:
        """Puts what jobs read into the store, each once, under its digest."""
        for value in (self.network, self.calibration, self.evaluation):
            store.upload_input(value.digest, value.to_bytes())

    def with_recipe(self, recipe: Recipe, name: str) -> Prepared:
        """The same checkpoint and images by another recipe (of equal calibration and seed).

        Raises:
            InputError: its k is more than the network has boundaries.
        """
        _check_selection(self.network, recipe)
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
    """Whatever is wrong with images may be mended, and no checkpoint is to blame.

    Raises:
        Unavailable: they cannot be had, now.
        BadImages: they were had, and are wrong.
    """
    try:
        yield
    except Unavailable:
        raise
    except InputError as error:
        raise BadImages(which + str(error)) from None
    except (BotoCoreError, ClientError) as error:
        raise Unavailable(which + first_line(error)) from None
    except Exception as error:
        said = f"images cannot be read ({type(error).__name__}: {first_line(error)}): mend them"
        raise BadImages(which + said) from None


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


def preprocess_of(request: Request, architecture: str) -> Preprocess:
    """What the request says, also in a file, which may lie in S3; else what is published."""
    said = request.preprocess
    if not said:
        return published_preprocess(architecture)
    return Preprocess.parse(str(local_path(said)) if said.startswith("s3://") else said)


def prepare(request: Request) -> Prepared:
    """Reads checkpoint and images and checks that they, and the recipe, fit each other.

    Raises:
        InputError: with one line that says what is wrong, where, and how to mend it.
        Unavailable: checkpoint or images cannot be had, now.
    """
    (prepared,) = prepare_all([request])
    return prepared


def prepare_all(
    requests: Sequence[Request], doing: Callable[[str], None] = lambda what: None
) -> list[Prepared]:
    """Prepares requests of one checkpoint that differ in recipe and name; each file is read once.

    Args:
        requests: at least one.
        doing: told what comes next: ``checkpoint``, ``images`` or ``network``.

    Raises:
        InputError: with one line that says what is wrong, where, and how to mend it.
        Unavailable: checkpoint or images cannot be had, now.
    """
    request = requests[0]
    require(request.formats)
    doing("checkpoint")
    checkpoint = checkpoints.load(local_path(request.checkpoint), request.arch)
    preprocess = preprocess_of(request, checkpoint.architecture)
    doing("images")
    images = _Images.read(request, preprocess)
    drawn = {_draw(each): images.calibration(each.recipe) for each in requests}
    doing("network")
    calibration = drawn[_draw(request)]
    images.check(checkpoints.check_input(checkpoint, calibration.normalized(0, 2)))
    source = {
        "checkpoint": request.checkpoint,
        "checkpoint_digest": checkpoint.digest,
        "architecture": checkpoint.architecture,
        "data": request.data,
        "data_digest": images.pool.digest,
        "preprocess": str(preprocess),
    }
    network = build(checkpoint.model, calibration.normalized(0, 2), source)
    doubts = tuple(filter(None, [*checkpoint.warnings, names.doubt(images.tests.classes)]))
    for doubt in doubts:
        _say(doubt)
    return [
        _prepared(each, network, drawn[_draw(each)], images, source, doubts) for each in requests
    ]


def _draw(request: Request) -> tuple[int, int]:
    """What decides which images calibrate."""
    return request.recipe.calibration, request.recipe.seed


@dataclass(frozen=True)
class _Images:
    """The images of a request: those to calibrate on, and those to test on."""

    pool: data.Images
    tests: data.Images
    evaluation: ImageSet
    preprocess: Preprocess
    measured: str

    @classmethod
    def read(cls, request: Request, preprocess: Preprocess) -> _Images:
        known = classes_of(request.classes)
        pool = pool_of(request.data, preprocess, known)
        known = known or pool.classes
        place = request.eval_data or request.data
        split: data.Split = "all" if request.eval_data else "evaluation"
        tests = evaluation_images(place, preprocess, request.eval_images, split, known)
        measured = f"data {place}"
        return cls(pool, tests, images_of(tests, preprocess), preprocess, measured)

    def calibration(self, recipe: Recipe) -> ImageSet:
        with _blaming_images():
            chosen = data.calibration(self.pool, recipe.calibration, recipe.seed)
        return images_of(chosen, self.preprocess)

    def check(self, outputs: int) -> None:
        """Refuses images of other classes than a network's ``outputs``."""
        with _blaming_images():
            names.check_count(self.tests.classes, outputs, self.measured)
        with _blaming_images(f"{self.measured}: "):
            self.evaluation.check_labels(outputs)


def _prepared(
    request: Request,
    network: Network,
    calibration: ImageSet,
    images: _Images,
    source: dict[str, str],
    doubts: tuple[str, ...],
) -> Prepared:
    recipe, evaluation = request.recipe, images.evaluation
    _check_selection(network, recipe)
    name = f"{request.model_name} {recipe.bits} {recipe.method.name}"
    pixels = evaluation.pixels.nbytes
    return Prepared(
        request=request,
        cell=Cell(network, calibration.digest, evaluation.digest, recipe, name, pixels),
        source=source,
        fp_bytes=_fp_bytes(network),
        classes=images.tests.classes,
        warnings=(*doubts, *network.notices),  # the latter were said when it was built
        network=network,
        calibration=calibration,
        evaluation=evaluation,
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
