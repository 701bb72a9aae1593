"""Networks that return maps, from the request to the registered version, without a label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import modcap
from modcap.checkpoints import _torchvision, checkpoint
from modcap.checkpoints.published_preprocess import published_preprocess
from modcap.core.errors import InputError
from modcap.flows.registry.accuracy import evaluate_artifact
from modcap.flows.registry.publish import _description, _metrics
from modcap.flows.registry.version_tags import scale_of, tags_of
from modcap.flows.reports.cell_record import Finished
from modcap.flows.reports.document import report_of
from modcap.flows.reports.page import page_of
from modcap.flows.requests.asked import Request
from modcap.flows.requests.request import prepare
from modcap.graph.outputs import Output
from modcap.recipe import Recipe
from tests.in_process import finished_of, served

SIZE = (3, 16, 24)
PREPROCESS = "mean=0.5/0.5/0.5,std=0.25/0.25/0.25"
FORMATS = ("onnx", "pt2", "encodings")


class Pyramid(nn.Module):
    """A backbone and the maps of two of its stages, as detectors take them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.stage = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.lateral = nn.ModuleList([nn.Conv2d(8, 6, 1), nn.Conv2d(12, 6, 1)])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.stem(x)
        coarse = self.lateral[1](self.stage(fine))
        up = nn.functional.interpolate(coarse, scale_factor=2.0)
        return {"0": self.lateral[0](fine) + up, "1": coarse}


def npz(folder: Path, count: int = 40, size: tuple[int, int, int] = SIZE, **labels: Any) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (count, *size), dtype=np.uint8)
    np.savez(folder / "images.npz", images=pixels, **labels)
    return str(folder / "images.npz")


def request(folder: Path, model: nn.Module, arch: str, **fields: Any) -> Request:
    save_file(model.state_dict(), folder / "net.safetensors")
    steps: Any = {"iterations": 2, "batch_size": 4}
    recipe = Recipe.preset(
        "quick", w_bits=8, a_bits=8, k=0, calibration=16, tuning=0, optimiser=steps
    )
    given = {
        "checkpoint": str(folder / "net.safetensors"),
        "arch": arch,
        "preprocess": PREPROCESS,
        "recipe": recipe,
    }
    return Request.model_validate(given | fields)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, Finished]:
    folder = tmp_path_factory.mktemp("pyramid")
    torch.manual_seed(0)
    model = Pyramid().eval()
    asked = request(folder, model, "tests.test_maps:Pyramid", data=npz(folder), exports=FORMATS)
    return folder, model, finished_of(prepare(asked))


def test_the_report_of_a_pyramid(pyramid: tuple[Path, nn.Module, Finished]) -> None:
    _, _, done = pyramid
    said = json.loads(json.dumps(done.report))
    assert (said["metric"], said["fp_value"], said["higher_is_better"]) == ("error", 0.0, False)
    assert 0 < said["value"] < 0.01
    assert said["drop"] == pytest.approx(said["value"], abs=1e-8)
    assert not {"top1", "fp_top1"} & said.keys()
    outputs = {each["name"]: (each["shape"], each["error"]) for each in said["outputs"]}
    assert {name: shape for name, (shape, _) in outputs.items()} == {
        "0": [6, 8, 12],
        "1": [6, 4, 6],
    }
    assert all(0 < error < 0.01 for _, error in outputs.values())
    page = page_of(report_of(said, "it"), done.artifact)
    assert "Relative error, full precision → quantized" in page
    assert "top-1" not in page.lower()
    for row in said["exports"]:
        if row["format"] != "encodings":
            assert list(row["outputs"]) == ["0", "1"]
            assert row["largest_difference"] < 1e-3 * row["largest_logit"]


def test_tags_and_metrics_of_a_pyramid(pyramid: tuple[Path, nn.Module, Finished]) -> None:
    _, _, done = pyramid
    tags = tags_of(done)
    assert (tags["metric"], tags["fp_error"]) == ("error", "0")
    assert "top1" not in tags
    assert scale_of(tags) == done.scale
    logged = {metric.key: metric.value for metric in _metrics(done)}
    assert logged["error"] == done.value
    assert logged["drop"] == pytest.approx(done.value, abs=1e-8)
    assert "Relative error" in _description(done)


def test_a_pyramid_loads_again(pyramid: tuple[Path, nn.Module, Finished], tmp_path: Path) -> None:
    _, model, done = pyramid
    x = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(1))
    file = tmp_path / "a.safetensors"
    file.write_bytes(done.artifact)
    network = modcap.load(file)
    assert network.outputs == (
        Output(name="0", shape=(6, 8, 12)),
        Output(name="1", shape=(6, 4, 6)),
    )
    exact, found = model(x), network(x)
    version = served(done, tmp_path / "version")
    predicted = version.predict(x.numpy())
    schema = version.metadata.signature.outputs
    assert [spec.name for spec in schema] == ["0", "1"]
    for spec in schema:
        assert (-1, *found[spec.name].shape[1:]) == spec.shape
        assert (found[spec.name] - exact[spec.name]).norm() < 0.1 * exact[spec.name].norm()
        assert np.allclose(predicted[spec.name], found[spec.name], atol=1e-6)
    files = {each.format: tmp_path / f"b.{each.format}" for each in done.exports}
    for each in done.exports:
        files[each.format].write_bytes(each.data)
    exported = torch.export.load(files["pt2"]).module()(x)
    for name, value in found.items():
        assert torch.allclose(exported[name], value, atol=1e-5)
    mlflow.models.validate_schema(x.numpy(), version.metadata.signature.inputs)


@pytest.mark.parametrize("form", ["artifact", "onnx", "pt2"])
def test_evaluate_measures_a_pyramid(
    pyramid: tuple[Path, nn.Module, Finished], tmp_path: Path, form: str
) -> None:
    folder, _, done = pyramid
    exported = {each.format: each.data for each in done.exports} | {"artifact": done.artifact}
    file = tmp_path / f"net.{'safetensors' if form == 'artifact' else form}"
    file.write_bytes(exported[form])
    checkpoint = str(folder / "net.safetensors"), "tests.test_maps:Pyramid"
    data = str(folder / "images.npz")
    said = evaluate_artifact(str(file), data, None, None, None, *checkpoint)
    assert (said["metric"], said["images"]) == ("error", 40)
    assert said["value"] == pytest.approx(done.value, rel=0.3)
    assert said["value"] > 0
    if form != "artifact":  # which does not say what it was calibrated on
        assert said["held_out_images"] == done.report["images"] == 20
        assert said["held_out_value"] == pytest.approx(done.value, rel=1e-3)
        assert "relative error is " in said["warnings"][0]
    with pytest.raises(InputError, match="which is not at hand: give --checkpoint"):
        evaluate_artifact(str(file), data, None, None)
    with pytest.raises(InputError, match="--metric agreement compares classes"):
        evaluate_artifact(str(file), data, None, None, None, *checkpoint, "agreement")


class Backbone(nn.Module):
    """Two maps of a tiny network, under the names that torchvision's head asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.BatchNorm2d(6), nn.Hardswish())
        self.high = nn.Sequential(nn.Conv2d(6, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.Hardswish())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low = self.low(x)
        return {"low": low, "high": self.high(low)}


def tiny_lraspp(num_classes: int = 3) -> nn.Module:
    segmentation = _torchvision.models().segmentation
    found: nn.Module = segmentation.lraspp.LRASPP(Backbone(), 6, 8, num_classes, inter_channels=8)
    return found


@pytest.mark.parametrize("exported", [False, True])
def test_a_segmentation_network(tmp_path: Path, exported: bool) -> None:
    torch.manual_seed(0)
    model = tiny_lraspp(4).eval()
    data = npz(tmp_path, size=(3, 32, 48))
    asked = request(tmp_path, model, "tests.test_maps:tiny_lraspp", data=data, exports=("onnx",))
    if exported:
        file, images = tmp_path / "net.pt2", torch.randn(2, 3, 32, 48)
        batch = ({0: torch.export.Dim("batch")},)
        torch.export.save(torch.export.export(model, (images,), dynamic_shapes=batch), file)
        asked = asked.model_copy(update={"checkpoint": str(file), "arch": None})
    done = finished_of(prepare(asked))
    assert done.scale.metric == "agreement"
    assert done.report["agreement"] == done.value > 80
    assert done.full == 100.0
    (onnx,) = done.exports
    (output,) = onnxruntime.InferenceSession(onnx.data).get_outputs()
    assert (output.name, output.shape) == ("output", ["batch", 4, 32, 48])
    predicted = served(done, tmp_path / "version").predict(np.zeros((1, 3, 32, 48), "f4"))
    assert predicted.shape == (1, 4, 32, 48)


def test_segmentation_networks_of_torchvision_have_names(tmp_path: Path) -> None:
    make = _torchvision.models().segmentation.lraspp_mobilenet_v3_large
    model = make(weights=None, weights_backbone=None, num_classes=5).eval()
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    loaded = checkpoint.load(tmp_path / "net.safetensors", "torchvision:lraspp_mobilenet_v3_large")
    assert checkpoint.check_input(loaded, torch.randn(2, 3, 32, 32)) is None
    assert published_preprocess(loaded.architecture).crop is None


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    data = npz(tmp_path, labels=np.zeros((40, 16, 24), np.int64))
    for metric, said in (
        ("top1", "--metric top1 compares classes, and the network returns 2 outputs"),
        ("agreement", "returns 2 outputs"),
        ("tests.test_maps:absent", "has no function 'absent'"),
        ("tests.nowhere:x", "cannot be imported"),
    ):
        asked = request(tmp_path, Pyramid(), "tests.test_maps:Pyramid", data=data, metric=metric)
        with pytest.raises(InputError, match=said) as caught:
            prepare(asked)
        assert "\n" not in str(caught.value)
