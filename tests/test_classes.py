"""Class names number the labels, wherever images lie; what does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from modcap import quantize
from modcap.core.errors import InputError
from modcap.data import classes
from modcap.data import sources as data
from modcap.data.preprocess import Preprocess
from modcap.flows.registry.accuracy import evaluate_artifact
from modcap.flows.requests.asked import Request
from modcap.flows.requests.request import prepare
from modcap.recipe import CapacityKind, Recipe

GRAY = Preprocess(mean=(0.5,), std=(0.25,))
NAMES = ("bag", "coat", "shirt")
BRIGHT = {"bag": 0, "coat": 100, "shirt": 200}


class Brightness(nn.Module):
    """Tells the three classes by their brightness, without fault."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        with torch.no_grad():
            self.net[1].weight.copy_(torch.tensor([-1.0, 0.0, 1.0])[:, None].expand(3, 64) / 64)
            self.net[1].bias.copy_(torch.tensor([-0.4, 0.4, -0.4]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def write(root: Path, names: Sequence[str] = NAMES, count: int = 12) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.full((8, 8), BRIGHT.get(name, 9), np.uint8)
            pixels[0, 0] = index
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def request(folder: Path, **fields: object) -> Request:
    file = folder / "w.safetensors"
    save_file(Brightness().state_dict(), file)
    recipe = Recipe(method="rtn", capacity=CapacityKind.NONE, k=0, calibration=16)
    given = {
        "checkpoint": str(file),
        "arch": "tests.test_classes:Brightness",
        "preprocess": "mean=0.5,std=0.25",
        "recipe": recipe,
    }
    return Request.model_validate(given | fields)


def test_test_images_are_numbered_by_the_names_of_the_training_images(tmp_path: Path) -> None:
    train, tests = write(tmp_path / "a"), write(tmp_path / "b", NAMES[1:])
    prepared = prepare(request(tmp_path, data=str(train), eval_data=str(tests)))
    assert sorted(set(prepared.evaluation.labels.tolist())) == [1, 2]
    assert prepared.classes == NAMES
    write(tests, ("sock",))
    with pytest.raises(InputError, match="images of sock, and the network no such class"):
        prepare(request(tmp_path, data=str(train), eval_data=str(tests)))


@pytest.mark.parametrize("missing", ["train", "undivided", "eval"])
def test_folders_that_cannot_number_the_networks_classes_are_refused(
    tmp_path: Path, missing: str
) -> None:
    np.savez(
        tmp_path / "d.npz",
        images=np.zeros((40, 1, 8, 8), np.uint8),
        labels=np.zeros(40, np.int64),
    )
    some = (
        write(tmp_path / "a" / "train", NAMES[1:]).parent if missing == "train" else tmp_path / "b"
    )
    if missing == "train":
        write(some / "val", NAMES[1:])
    else:
        write(some, NAMES[1:], count=20)
    fields = {"data": str(some)}
    if missing == "eval":
        fields = {"data": str(tmp_path / "d.npz"), "eval_data": str(some)}
    with pytest.raises(InputError, match=r"names 2 classes, and the network has 3.*--classes"):
        prepare(request(tmp_path, **fields))
    names = tmp_path / "names.txt"
    names.write_text("bag\ncoat\nshirt\n")
    prepared = prepare(request(tmp_path, **fields, classes=str(names)))
    assert sorted(set(prepared.evaluation.labels.tolist())) == [1, 2]
    assert prepared.classes == NAMES


def test_numbers_that_sort_otherwise_as_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert classes.doubt(["0", "1", "10", "2"])
    assert classes.doubt(["00", "01", "10"]) is None
    assert classes.doubt(["1", "10", "x"]) is None
    assert classes.doubt(None) is None
    for names in (["class1", "class10", "class2"], ["10_coat", "1_bag", "2_shirt"], ["n10", "n9"]):
        assert classes.doubt(names)
    for names in (["class01", "class02", "class10"], ["cat2", "dog1"], ["a", "b1"]):
        assert classes.doubt(names) is None
    folder = write(tmp_path / "a", ("1", "10", "9"))
    prepared = prepare(request(tmp_path, data=str(folder)))
    assert "sorted as text" in prepared.warnings[0]
    assert "sorted as text" in caplog.text


def test_an_artifact_is_evaluated_by_the_names_that_are_given(tmp_path: Path) -> None:
    images = torch.cat([torch.full((8, 1, 8, 8), v / 255) for v in BRIGHT.values()])
    recipe = Recipe(w_bits=8, a_bits=8, method="rtn", capacity=CapacityKind.NONE, k=0)
    made = quantize(Brightness().eval(), GRAY.normalize(images), recipe)
    file = tmp_path / "a.safetensors"
    file.write_bytes(made.artifact)
    train, tests = write(tmp_path / "t" / "train"), write(tmp_path / "b", NAMES[1:])
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"classes": NAMES}))
    plain = str(GRAY)
    for source in (train, train.parent, report):
        found = evaluate_artifact(str(file), str(tests), plain, None, str(source))
        assert found["top1"] == 100
    with pytest.raises(InputError, match="names 2 classes"):
        evaluate_artifact(str(file), str(tests), plain, None)


def test_numbers_of_an_evaluation_that_may_be_others(tmp_path: Path) -> None:
    images = torch.cat([torch.full((8, 1, 8, 8), v / 255) for v in BRIGHT.values()])
    recipe = Recipe(w_bits=8, a_bits=8, method="rtn", capacity=CapacityKind.NONE, k=0)
    model, pixels = Brightness().eval(), GRAY.normalize(images)
    own, plain = (
        quantize(model, pixels, recipe, preprocess=GRAY, classes=NAMES),
        quantize(model, pixels, recipe, preprocess=GRAY),
    )
    files = [tmp_path / "own", tmp_path / "plain"]
    own.save(files[0])
    plain.save(files[1])
    reverse = tmp_path / "names.txt"
    reverse.write_text("shirt\ncoat\nbag\n")
    tests = str(write(tmp_path / "tests"))
    (said,) = evaluate_artifact(str(files[0]), tests, None, None, str(reverse))["warnings"]
    assert "otherwise than the artifact says" in said
    assert not evaluate_artifact(str(files[0]), tests, None, None)["warnings"]
    numbered = str(write(tmp_path / "numbered", ("1", "10", "9")))
    said, dark = evaluate_artifact(str(files[1]), numbered, None, None)["warnings"]
    assert "sorted as text" in said
    assert "nearly constant" in dark


def test_what_to_do_with_folders_that_are_too_many(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", (*NAMES, "sock"))
    with pytest.raises(InputError, match=r"names 4 classes.*remove folders that are none"):
        prepare(request(tmp_path, data=str(folder)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.txt", ""),
        ("c.txt", "a\nb\na\n"),
        ("c.json", "3"),
        ("c.json", '{"classes": null}'),
        ("c.json", '["a", 1]'),
        ("c.json", "[" * 9999),
    ],
)
def test_names_that_are_none(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=name):
        classes.read(tmp_path / name)


def test_names_number_the_images_of_a_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", NAMES[:2])
    reverse = data.load(str(folder), split="all", preprocess=GRAY, classes=NAMES[::-1])
    assert set(reverse.labels) == {1, 2}
    assert reverse.classes == NAMES[::-1]
