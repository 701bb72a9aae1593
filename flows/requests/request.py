"""From what a user asks for to a cell of a plan: checkpoint and images are read and checked."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from modcap.checkpoints import checkpoint as checkpoints
from modcap.checkpoints.published_preprocess import published_preprocess
from modcap.core.errors import InputError
from modcap.data import sources as data
from modcap.data.image_set import ImageSet
from modcap.data.preprocess import Preprocess
from modcap.export import Known, require
from modcap.flows.requests.asked import Request
from modcap.flows.requests.local_path import local_path
from modcap.flows.requests.request_images import Measure, RequestImages, measured
from modcap.graph.network import Network, build
from modcap.jobs.job import Cell
from modcap.jobs.kinds.allocate import refuse_impossible_bounds
from modcap.ptq.capacity import signature
from modcap.recipe import Homogeneity, Recipe, Selection

if TYPE_CHECKING:
    from modcap.tasks.storage.store import Store

__all__ = ["Prepared", "Ready", "Request", "prepare", "prepare_all", "say"]


_R = TypeVar("_R", bound="Ready")


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


def known_of(source: Mapping[str, str], classes: Sequence[str] | None) -> Known:
    """What artifacts, and their exports, say of where they come from."""
    digests = {"source_digest": source["checkpoint_digest"], "data_digest": source["data_digest"]}
    return Known({}, digests, source["preprocess"], tuple(classes or ()))


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
    images = RequestImages.read(request, preprocess)
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


def _prepared(
    request: Request,
    network: Network,
    calibration: ImageSet,
    images: RequestImages,
    metric: Measure,
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
