"""The images of a request: what calibrates, what is tested on, and by what that is measured."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch

from modcap.core.errors import InputError, Unavailable
from modcap.core.messages import first_line
from modcap.data import classes as names
from modcap.data import doubts as doubting
from modcap.data import sources as data
from modcap.data.image_set import ImageSet
from modcap.data.preprocess import Preprocess
from modcap.flows.requests.asked import Request
from modcap.flows.requests.local_path import local_path
from modcap.graph.network import Network
from modcap.ptq.measured import TOP1
from modcap.ptq.metric_name import MetricName
from modcap.ptq.metrics import chosen_metric
from modcap.ptq.user_metric import with_code
from modcap.recipe import Recipe

__all__ = [
    "BadImages",
    "Measure",
    "RequestImages",
    "classes_of",
    "evaluation_images",
    "images_of",
    "measured",
    "pool_of",
]


class BadImages(Unavailable):
    """Images that were read are not as they must be; better ones may lie there later."""


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


@dataclass(frozen=True)
class RequestImages:
    """The images of a request: those to calibrate on, and those to test on."""

    pool: data.Images
    tests: data.Images
    evaluation: ImageSet
    preprocess: Preprocess
    place: str  # of the tests
    listed: tuple[str, ...] | None  # classes that were named, not found

    @classmethod
    def read(cls, request: Request, preprocess: Preprocess) -> RequestImages:
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

    def metric(self, asked: str | None, network: Network) -> Measure:
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
        return Measure(name, chance)


@dataclass(frozen=True)
class Measure:
    """The metric, as it is asked for, and what guessing gets by it, where that is known."""

    name: MetricName
    chance: float | None
