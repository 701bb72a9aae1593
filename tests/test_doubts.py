"""Networks that guess, and test images that calibrated, are told before anybody trusts a figure."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from modcap.data.doubts import (
    chance_of,
    doubt_of_accuracy,
    doubt_of_overlap,
    doubt_of_pixels,
    doubt_of_size,
    overlap,
)
from modcap.data.images import Images
from modcap.data.preprocess import Preprocess
from modcap.flows.requests.request import prepare
from tests.test_classes import GRAY, request


def images(count: int, seed: int, labels: list[int] | None = None) -> Images:
    pixels = np.random.RandomState(seed).randint(0, 256, (count, 3, 8, 8)).astype(np.uint8)
    found = np.arange(count) % 10 if labels is None else np.asarray(labels)
    return Images(pixels, found.astype(np.int64), f"set {seed}")


@pytest.mark.parametrize(
    ("top1", "count", "chance", "doubted"),
    [
        (9.7, 10_000, 10.0, True),  # preprocessed wrongly, or labels shuffled
        (18.9, 10_000, 10.0, True),
        (20.4, 10_000, 10.0, False),
        (93.0, 10_000, 10.0, False),
        (40.0, 16, 10.0, True),  # too few images to tell
        (100.0, 16, 10.0, False),
        (0.2, 50_000, 0.1, True),
        (60.0, 50_000, 0.1, False),
        (90.5, 1000, 90.0, True),  # always names the class that nine in ten have
        (97.0, 1000, 90.0, False),
        (0.0, 10_000, 10.0, True),
    ],
)
def test_full_precision_near_chance(top1: float, count: int, chance: float, doubted: bool) -> None:
    said = doubt_of_accuracy(top1, count, chance)
    assert (said is not None) is doubted
    if said is not None:
        assert "--preprocess" in said
        assert f"{top1:.2f} %" in said


def test_the_limits_are_those_of_wilson() -> None:
    """The score interval's ends solve (p - x)^2 = z^2 p (1 - p) / n for p."""
    for count, limit in ((10_000, 20.21), (100, 31.12)):
        assert doubt_of_accuracy(limit - 0.1, count, 10.0) is not None
        assert doubt_of_accuracy(limit + 0.1, count, 10.0) is None
    target, n, z = 0.19, 400, 3.09
    edge = 100 * (target + z * math.sqrt(target * (1 - target) / n))
    assert doubt_of_accuracy(edge - 0.01, n, 10.0) is not None
    assert doubt_of_accuracy(edge + 0.01, n, 10.0) is None


@pytest.mark.parametrize(
    ("pixels", "doubted"),
    [
        (np.eye(8, dtype=np.uint8), True),  # a mask of 0 and 1
        (16 * np.eye(8, dtype=np.uint8), True),  # 12 bits in 16, or digits of scikit-learn
        (np.full((8, 8), 200, np.uint8), True),
        (255 * np.eye(8, dtype=np.uint8), False),
        (np.eye(8, dtype=np.float32) / 255, True),  # scaled twice
        (np.eye(8, dtype=np.float32), False),
    ],
)
def test_pixels_that_are_nearly_constant(pixels: np.ndarray, doubted: bool) -> None:
    found = Images(np.stack([pixels[None]] * 4), np.zeros(4, np.int64), "set")
    said = doubt_of_pixels(found, GRAY)
    assert (said is not None) is doubted
    assert said is None or "nearly constant" in said
    assert doubt_of_pixels(found, GRAY.model_copy(update={"range": "any"})) is None
    assert doubt_of_pixels(found.take([]), GRAY) is None


def test_arrays_of_another_size_than_the_crop() -> None:
    found = images(4, 0)
    assert doubt_of_size(found, Preprocess.parse("crop=8,mean=0/0/0,std=1/1/1")) is None
    assert doubt_of_size(found, Preprocess.parse("mean=0/0/0,std=1/1/1")) is None
    said = doubt_of_size(found, Preprocess.parse("imagenet"))
    assert said is not None
    assert "are 8 × 8, and the preprocessing crops to 224" in said


def test_requests_say_what_is_doubtful_of_images(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 2, (60, 1, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "d.npz", images=pixels, labels=np.arange(60) % 3)
    place, plain = str(tmp_path / "d.npz"), "crop=4,mean=0.5,std=0.25"
    dark, sized = prepare(request(tmp_path, data=place, preprocess=plain)).warnings
    assert "nearly constant" in dark
    assert "taken as they are" in sized


def test_chance_is_the_commonest_class() -> None:
    assert chance_of(images(10, 0, [0] * 7 + [1] * 3), 10) == 70
    assert chance_of(images(4, 0, [2] * 4), 10) == 10  # of one class, nothing is known
    assert chance_of(images(0, 0, []), 4) == 25


def test_images_in_both_sets_are_counted_by_content() -> None:
    pool, tests = images(200, 0), images(300, 1)
    assert overlap(pool, tests) == 0
    assert doubt_of_overlap(pool, tests) is None
    tests.images[7], tests.images[9] = pool.images[100], pool.images[101]
    assert overlap(pool, tests) == 2
    assert doubt_of_overlap(pool, tests) is None  # a hundredth: natural sets hold a few twice
    tests.images[11] = pool.images[102]
    said = doubt_of_overlap(pool, tests)
    assert said is not None
    assert "3 of the 200 images" in said
    assert "--eval-data" in said
    near = images(200, 0)
    near.images[:, 0, 0, 0] ^= 1  # nearly the same is another image
    assert overlap(pool, near) == 0


def test_sets_of_other_shapes_and_types_share_nothing() -> None:
    pool = images(20, 0)
    floats = Images(pool.images.astype(np.float32) / 255, pool.labels, "floats")
    smaller = Images(pool.images[..., :4], pool.labels, "smaller")
    assert overlap(pool, floats) == overlap(pool, smaller) == 0


def test_the_calibration_file_as_test_file_is_said(tmp_path: Path) -> None:
    rng = np.random.RandomState(0)
    labels = (np.arange(60) % 3).astype(np.int64)
    pixels = rng.randint(0, 256, (60, 1, 8, 8)).astype(np.uint8)
    file, other = str(tmp_path / "a.npz"), str(tmp_path / "b.npz")
    np.savez(file, images=pixels, labels=labels)
    np.savez(other, images=255 - pixels, labels=labels)
    again = str(tmp_path / "again.npz")
    np.savez(again, images=pixels[::-1], labels=labels[::-1])
    same = prepare(request(tmp_path, data=file, eval_data=again))
    assert "are test images too" in same.warnings[0]
    assert not prepare(request(tmp_path, data=file, eval_data=other)).warnings
    assert not prepare(request(tmp_path, data=file)).warnings  # divided
    assert same.chance == pytest.approx(100 / 3)
