"""From what a user asks for to a cell of a plan: checkpoint and images are read and checked."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from modcap.checkpoints import checkpoint as checkpoints
from modcap.checkpoints.published_preprocess import published_preprocess
from modcap.core.errors import InputError, Unavailable
from modcap.core.messages import first_line
from modcap.data import classes as names
from modcap.data import doubts as doubting
from modcap.data import sources as data
from modcap.data.image_set import ImageSet
from modcap.data.preprocess import Preprocess
from modcap.export import Known, require
from modcap.flows.requests.asked import Request
from modcap.graph.network import Network, build
from modcap.jobs.job import Cell
from modcap.jobs.kinds.allocate import refuse_impossible_bounds
from modcap.ptq.capacity import signature
from modcap.ptq.measured import TOP1
from modcap.ptq.metric_name import MetricName
from modcap.ptq.metrics import chosen_metric
from modcap.ptq.user_metric import with_code
from modcap.recipe import Homogeneity, Recipe, Selection

if TYPE_CHECKING:
    from modcap.tasks.storage.store import Store

__all__ = ["BadImages", "Prepared", "Ready", "Request", "prepare", "prepare_all", "say"]


_R = TypeVar("_R", bound="Ready")


class BadImages(Unavailable):
    """Images that were read are not as they must be; better ones may lie there later."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A request whose input was read and found good, as plans and reports need it.

    Attributes:
        chance: percent of the test images that guessing gets right, where top-1 is measured.
    """

    request: Request
    cell: Cell
    source: dict[str, str]
    fp_bytes: int
    measured: str
    classes: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()
    chance: float | None = None

    def on(self: _R, gpu: bool) -> _R:
        """The same with a device that is known; see :meth:`modcap.recipe.Recipe.on`."""
        request = self.request.on(gpu)
        cell = replace(self.cell, recipe=self.cell.recipe.on(gpu))
        return replace(self, request=request, cell=cell)


@dataclass(frozen=True, kw_only=True)
class Prepared(Ready):
    """With what was read."""

    network: Network
    calibration: ImageSet
    evaluation: ImageSet

    def upload(self, store: Store) -> None:
        """Puts what jobs read into the store, each once, under its digest."""
        store.upload_input(self.network.digest, self.network.to_bytes())
        for images in (self.calibration, self.evaluation):
            store.upload_large_input(images.digest, images.file_bytes, images.write)

    def exporting(self, formats: tuple[str, ...]) -> Prepared:
        """The same with these exports."""
        return replace(self, cell=replace(self.cell, exports=formats))

    def with_recipe(self, recipe: Recipe, name: str) -> Prepared:
        """The same checkpoint and images by another recipe (of equal calibration and seed).

        Raises:
            InputError: its k is more than the network has boundaries, or a name in it is none of
                the network's.
        """
        check_recipe(self.network, recipe)
        cell = replace(self.cell, recipe=recipe, name=name)
        request = self.request.model_copy(update={"recipe": recipe})
        return replace(self, request=request, cell=cell)


def local_path(address: str) -> Path:
    """A local path of what may lie in S3."""
    if address.startswith("s3://"):
        from modcap.tasks.storage.objects import cache_folder, fetch

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
    except Exception as error:
        if type(error).__module__.startswith("botocore"):
            raise Unavailable(which + first_line(error)) from None
        said = f"images cannot be read ({type(error).__name__}: {first_line(error)}): mend them"
        raise BadImages(which + said) from None


def known_of(source: Mapping[str, str], classes: Sequence[str] | None) -> Known:
    """What artifacts, and their exports, say of where they come from."""
    digests = {"source_digest": source["checkpoint_digest"], "data_digest": source["data_digest"]}
    return Known({}, digests, source["preprocess"], tuple(classes or ()))


def images_of(images: data.Images, preprocess: Preprocess) -> ImageSet:
    return ImageSet(
        torch.from_numpy(images.images),
        None if images.labels is None else torch.from_numpy(images.labels),
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
    classes: Sequence[str] | None = None,
    pools: Collection[str] = (),
    split: data.Split = "all",
) -> data.Images:
    """The images that accuracy is measured on, the same for every command: all of a place, or the
    first ``limit``, but none that is set aside for calibration where that draws from there, too.

    Args:
        spec: the place.
        preprocess: how images are read.
        limit: the most that are wanted.
        classes: names that number folders of classes.
        pools: digests of images that calibration draws from; they are compared by content, since
            the same images may lie in several places.
        split: ``evaluation`` where calibration draws from the same place for certain.
    """
    with _blaming_images():
        place = str(local_path(spec))
        found = data.load(place, split=split, preprocess=preprocess, limit=limit, classes=classes)
    if found.aside and pools and pool_of(spec, preprocess, classes).digest in pools:
        return found.held_out()
    return found


def measured(images: data.Images, place: str) -> str:
    """Which images those are, for people."""
    without = f", without {images.left_out:,} set aside for calibration" if images.left_out else ""
    return f"{len(images):,} images of {place}{without}"


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
        requests: at least one; of one metric.
        doing: told what comes next: ``checkpoint``, ``images`` or ``network``.

    Raises:
        InputError: with one line that says what is wrong, where, and how to mend it.
        Unavailable: checkpoint or images cannot be had, now.
    """
    request = requests[0]
    require(request.formats)
    if request.data is None:
        raise InputError(f"--data is missing: name images: {data.HELP}")
    doing("checkpoint")
    checkpoint = checkpoints.load(local_path(request.checkpoint), request.arch)
    preprocess = preprocess_of(request, checkpoint.architecture)
    doing("images")
    images = _Images.read(request, preprocess)
    drawn = {_draw(each): images.calibration(each.recipe) for each in requests}
    doing("network")
    calibration = drawn[_draw(request)]
    example = calibration.normalized(0, 2)
    outputs = checkpoints.check_input(checkpoint, example)
    named = images.classes(outputs)
    source = {
        "checkpoint": request.checkpoint,
        "checkpoint_digest": checkpoint.digest,
        "architecture": checkpoint.architecture,
        "data": request.data,
        "data_digest": images.pool.digest,
        "preprocess": str(preprocess),
    }
    network = build(checkpoint.model, example, source, strict=request.strict)
    measure = images.metric(request.metric, network)
    doubts = tuple(filter(None, [*checkpoint.warnings, *images.doubts()]))
    for doubt in doubts:
        say(doubt)
    return [
        _prepared(each, network, drawn[_draw(each)], images, measure, named, source, doubts)
        for each in requests
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
    place: str  # of the tests
    listed: tuple[str, ...] | None  # classes that were named, not found

    @classmethod
    def read(cls, request: Request, preprocess: Preprocess) -> _Images:
        listed = classes_of(request.classes)
        assert request.data is not None
        pool = pool_of(request.data, preprocess, listed)
        known = listed or pool.classes
        place = request.eval_data or request.data
        split: data.Split = "all" if request.eval_data else "evaluation"
        most, pools = request.eval_images, {pool.digest}
        tests = evaluation_images(place, preprocess, most, known, pools, split)
        return cls(pool, tests, images_of(tests, preprocess), preprocess, place, listed)

    def calibration(self, recipe: Recipe) -> ImageSet:
        with _blaming_images():
            chosen = data.calibration(self.pool, recipe.calibration, recipe.seed)
        return images_of(chosen, self.preprocess)

    def doubts(self) -> list[str | None]:
        """What may be wrong with what is measured on them."""
        return [
            names.doubt(self.tests.classes),
            doubting.doubt_of_overlap(self.pool, self.tests),
            doubting.doubt_of_pixels(self.pool, self.preprocess),
            doubting.doubt_of_size(self.pool, self.preprocess),
        ]

    def classes(self, outputs: int | None) -> tuple[str, ...] | None:
        """The names of the network's classes, where they are known; folders of images say nothing
        of a network that has no classes (None).

        Raises:
            BadImages: there are names of another number of classes than it has.
        """
        if outputs is None:
            return self.listed
        found = self.tests.classes or self.pool.classes or self.listed
        with _blaming_images():
            names.check_count(found, outputs, f"data {self.place}")
        return found

    def metric(self, asked: str | None, network: Network) -> _Measure:
        """By what a network is measured on them.

        Raises:
            InputError: the metric that is asked for does not fit the network.
            Unavailable: it is the user's, and not there.
            BadImages: there are none of the network's size, or none with labels, and it needs them.
        """
        name = with_code(MetricName(name=asked or ""))
        with _blaming_images(f"data {self.place}: "):
            self.evaluation.check_shape(network.input_shape)
        shape = network(self.evaluation.normalized(0, 1)).shape
        chosen = chosen_metric(name, network.outputs, shape, self.evaluation)
        if chosen.name == TOP1:
            with _blaming_images(f"data {self.place}: "):
                self.evaluation.check_labels(shape[1])
        chance = doubting.chance_of(self.tests, shape[1]) if chosen.name == TOP1 else None
        return _Measure(name, chance)


@dataclass(frozen=True)
class _Measure:
    """The metric, as it is asked for, and what guessing gets by it, where that is known."""

    name: MetricName
    chance: float | None


def _prepared(
    request: Request,
    network: Network,
    calibration: ImageSet,
    images: _Images,
    metric: _Measure,
    classes: tuple[str, ...] | None,
    source: dict[str, str],
    doubts: tuple[str, ...],
) -> Prepared:
    recipe, evaluation = request.recipe, images.evaluation
    check_recipe(network, recipe)
    name = f"{request.label} {recipe.bits_label} {recipe.method.name}"
    pixels = evaluation.pixels.nbytes
    return Prepared(
        request=request,
        cell=Cell(
            network,
            calibration.digest,
            evaluation.digest,
            recipe,
            name,
            pixels,
            known_of(source, classes),
            request.formats,
            metric.name,
        ),
        source=source,
        fp_bytes=network.float_bytes,
        measured=measured(images.tests, images.place),
        classes=classes,
        warnings=(*doubts, *network.notices),  # the latter were said when it was built
        chance=metric.chance,
        network=network,
        calibration=calibration,
        evaluation=evaluation,
    )


@functools.cache
def say(doubt: str) -> None:
    """Once, however often the same input is prepared."""
    logging.getLogger("modcap").warning(doubt)


def check_recipe(network: Network, recipe: Recipe) -> None:
    """Refuses, before any work is spent, what the network cannot meet: names that none of its
    layers has, bounds of bits that no choice meets, and a k that is more than its boundaries."""
    recipe.bit_policy.resolve(network)
    refuse_impossible_bounds(network, recipe)
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
