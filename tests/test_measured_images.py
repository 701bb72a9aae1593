"""One rule for the images that accuracy is measured on, whichever command measures."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from modcap import quantize
from modcap.core.errors import InputError
from modcap.data import sources as data
from modcap.export import Export, Known, save
from modcap.flows.registry.accuracy import evaluate_artifact
from modcap.flows.requests.request import Prepared, prepare
from modcap.recipe import CapacityKind, Recipe
from tests.test_classes import GRAY, NAMES, Brightness, request, write

COUNT = 40


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    return arrays(tmp_path / "images.npz", 0)


def arrays(file: Path, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (COUNT, 1, 8, 8), dtype=np.uint8)
    np.savez(file, images=pixels, labels=generator.integers(0, 3, COUNT))
    return file


def artifact(tmp_path: Path, **said: object) -> Path:
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(w_bits=8, a_bits=8, method="rtn", capacity=CapacityKind.NONE, k=0)
    made = quantize(Brightness().eval(), GRAY.normalize(images), recipe, **said)  # type: ignore[arg-type]
    made.save(tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize("limit", [None, 7, 20, 33])
def test_those_set_aside_for_calibration_come_last(npz: Path, tmp_path: Path, limit: int) -> None:
    folder = write(tmp_path / "folder", count=14)
    for place, count in ((npz, COUNT), (folder, 14 * len(NAMES))):
        everything = data.load(str(place), split="all", preprocess=GRAY, limit=limit)
        rest = data.load(str(place), split="evaluation", preprocess=GRAY, limit=limit)
        assert len(everything) == min(count, limit or count)
        assert everything.aside == max(0, len(everything) - (count - count // 2))
        assert everything.held_out().digest == rest.digest
        assert everything.held_out().left_out + len(rest) <= count


def test_evaluate_measures_every_image_by_what_the_artifact_says_of_them(
    npz: Path, tmp_path: Path
) -> None:
    report = evaluate_artifact(
        str(artifact(tmp_path, preprocess=GRAY, classes=NAMES)), str(npz), None, None
    )
    assert report["images"] == COUNT
    assert report["measured"] == f"{COUNT} images of {npz}"
    assert "agreement" not in report
    with pytest.raises(InputError, match="--preprocess is missing"):
        evaluate_artifact(str(artifact(tmp_path)), str(npz), None, None)


def test_what_a_file_says_of_itself_names_no_other_file(npz: Path, tmp_path: Path) -> None:
    other = tmp_path / "p.json"
    other.write_text('{"mean": [0.5], "std": [0.25]}')
    packed, file = artifact(tmp_path).read_bytes(), tmp_path / "n.onnx"
    save(Export(packed, known=Known(preprocess=str(other))), "onnx", file)
    with pytest.raises(InputError, match="is not understood"):
        evaluate_artifact(str(file), str(npz), None, None)
    assert evaluate_artifact(str(file), str(npz), str(other), None)["images"] == COUNT


def test_agreement_with_a_checkpoint_that_is_given(npz: Path, tmp_path: Path) -> None:
    asked = request(tmp_path, data=str(npz))
    file = str(artifact(tmp_path, preprocess=GRAY))
    report = evaluate_artifact(file, str(npz), None, 30, None, asked.checkpoint, asked.arch)
    assert report["images"] == 30
    assert report["agreement"] >= 90
    assert report["fp_top1"] == pytest.approx(report["top1"], abs=10)


def measured(tmp_path: Path, **fields: str | None) -> Prepared:
    return prepare(request(tmp_path, **fields))


def test_tests_leave_out_what_calibration_draws_from_wherever_it_lies(
    npz: Path, tmp_path: Path
) -> None:
    copied = shutil.copy(npz, tmp_path / "copy.npz")
    alone = measured(tmp_path, data=str(npz))
    for place in (str(npz), str(copied)):
        both = measured(tmp_path, data=str(npz), eval_data=place)
        assert both.evaluation.digest == alone.evaluation.digest
        assert both.measured == f"20 images of {place}, without 20 set aside for calibration"
    other = measured(tmp_path, data=str(npz), eval_data=str(arrays(tmp_path / "o.npz", 1)))
    assert other.measured == f"{COUNT} images of {tmp_path / 'o.npz'}"


@pytest.mark.parametrize("format_", ["onnx", "pt2"])
def test_a_file_whose_calibration_drew_from_there_says_so(
    npz: Path, tmp_path: Path, format_: str
) -> None:
    """The figure that quantize reports stands beside that of all images."""
    pool = data.load(str(npz), split="calibration", preprocess=GRAY).digest
    packed, file = artifact(tmp_path, preprocess=GRAY).read_bytes(), tmp_path / f"n.{format_}"
    save(Export(packed, known=Known(digests={"data_digest": pool})), format_, file)
    report = evaluate_artifact(str(file), str(npz), None, None)
    assert (report["images"], report["held_out_images"]) == (COUNT, COUNT // 2)
    assert "20 of its images were set aside" in report["warnings"][0]
    again = evaluate_artifact(str(file), str(npz), None, COUNT // 2)
    assert again["top1"] == report["held_out_top1"]
    assert again["warnings"] == []
    elsewhere = evaluate_artifact(str(file), str(arrays(tmp_path / "o.npz", 1)), None, None)
    assert "held_out_top1" not in elsewhere
