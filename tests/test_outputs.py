"""Networks that return something else than logits: feature maps, dicts and tuples of tensors."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modcap
from modcap.checkpoints import _torchvision
from modcap.core.errors import InputError
from modcap.data.image_set import ImageSet
from modcap.graph.network import Network, build
from modcap.graph.outputs import Output
from modcap.ptq.metrics import METRICS, default_metric

IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Heads(nn.Module):
    """Two feature maps and a vector, in whatever ``pack`` makes of them."""

    def __init__(self, pack: Any) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.fine, self.coarse = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 3, 2, 1)
        self.head = nn.Linear(8, 5)
        self.pack = pack

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return self.pack(self.fine(x), self.coarse(x), self.head(x.mean((2, 3))))


def _dict(fine: Tensor, coarse: Tensor, logits: Tensor) -> Any:
    return OrderedDict(fine=fine, coarse=coarse, logits=logits)


def _tuple(*values: Tensor) -> Any:
    return values


def _nested(fine: Tensor, coarse: Tensor, logits: Tensor) -> Any:
    return {"maps": [fine, coarse], "logits": logits, "loss": None}


def _one(fine: Tensor, coarse: Tensor, logits: Tensor) -> Any:
    return {"out": fine}


SHAPES = ((4, 8, 8), (6, 4, 4), (5,))
NAMES = {
    _dict: ("fine", "coarse", "logits"),
    _tuple: ("0", "1", "2"),
    _nested: ("maps.0", "maps.1", "logits"),
}


@pytest.mark.parametrize("pack", NAMES)
@pytest.mark.parametrize("exported", [False, True])
def test_several_outputs_keep_names_and_shapes(pack: Any, exported: bool) -> None:
    torch.manual_seed(0)
    model: Any = Heads(pack).eval()
    if exported:
        batch = ({0: torch.export.Dim("batch")},)
        model = torch.export.export(model, (IMAGES[:2],), dynamic_shapes=batch)
    network = build(model, IMAGES[:2])
    expected = [Output(name=n, shape=s) for n, s in zip(NAMES[pack], SHAPES, strict=True)]
    assert list(network.outputs) == expected
    again = Network.from_bytes(network.to_bytes())
    assert again.outputs == network.outputs
    assert again.digest == network.digest


def test_the_artifact_returns_what_the_model_returned() -> None:
    torch.manual_seed(0)
    model = Heads(_dict).eval()
    recipe = modcap.Recipe.preset("quick", w_bits=8, a_bits=8, method="rtn")
    done = modcap.quantize(model, IMAGES, recipe)
    found, exact = done.network(IMAGES), model(IMAGES)
    assert list(found) == list(exact)
    for name, value in exact.items():
        assert found[name].shape == value.shape
        assert (found[name] - value).norm() < 0.05 * value.norm()
    evaluated = [r.meta for r in done.results.values() if r.meta.get("metric")]
    assert [meta["metric"] for meta in evaluated] == ["error", "error"]
    assert sorted(meta["value"] for meta in evaluated)[0] == 0.0  # of full precision
    assert 0 < sorted(meta["value"] for meta in evaluated)[1] < 0.0025


def test_one_feature_map_is_a_tensor_and_reconstructs() -> None:
    torch.manual_seed(0)
    steps = {"iterations": 5, "batch_size": 4}
    recipe = modcap.Recipe.preset("quick", w_bits=4, k=0, optimiser=steps, tuning=2)
    done = modcap.quantize(Heads(_one).eval(), IMAGES, recipe)
    assert done.network(IMAGES).shape == (8, 4, 8, 8)
    (value,) = {r.meta["value"] for r in done.results.values() if "losses" in r.meta}
    assert 0 <= value <= 100


def test_segmentation_of_torchvision() -> None:
    make = _torchvision.models().segmentation.lraspp_mobilenet_v3_large
    torch.manual_seed(0)
    model = make(weights=None, weights_backbone=None, num_classes=3).eval()
    images = torch.randn(4, 3, 32, 32)
    recipe = modcap.Recipe.preset("quick", w_bits=8, a_bits=8, method="rtn", scale_exponent=2.0)
    done = modcap.quantize(model, images, recipe)
    assert done.network(images).shape == (4, 3, 32, 32)
    same = (done.network(images).argmax(1) == model(images)["out"].argmax(1)).float().mean()
    assert same > 0.9


def test_refuses_what_is_no_tensor() -> None:
    with pytest.raises(InputError, match="returns"):
        build(Heads(lambda fine, coarse, logits: (fine, 3)).eval(), IMAGES[:2])


def test_metrics_by_hand() -> None:
    images = ImageSet(torch.zeros(4, 1, 1, 1), torch.tensor([0, 1, 1, 0]), (0.0,), (1.0,))
    full = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [0.0, 2.0]])
    other = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 1.0]])
    values = {
        name: metric.measure(
            lambda x: other[: len(x)], lambda x: full[: len(x)], images, "cpu", None
        )
        for name, metric in METRICS.items()
    }
    assert values == {"top1": 50.0, "agreement": 75.0, "error": pytest.approx(9 / 16)}


def test_the_metric_follows_from_network_and_labels(tmp_path: Path) -> None:
    labelled = ImageSet(torch.zeros(1, 1, 1, 1), torch.tensor([0]), (0.0,), (1.0,))
    bare = ImageSet(torch.zeros(1, 1, 1, 1), None, (0.0,), (1.0,))
    assert default_metric(0, (1, 10), labelled).name == "top1"
    assert default_metric(0, (1, 10), bare).name == "agreement"
    assert default_metric(0, (1, 21, 8, 8), labelled).name == "agreement"
    assert default_metric(2, (1, 300), labelled).name == "error"
    assert ImageSet.from_bytes(bare.to_bytes()).labels is None
    file = tmp_path / "images.safetensors"
    with file.open("wb") as opened:
        bare.write(opened)
    assert ImageSet.from_file(file).labels is None
    assert ImageSet.from_file(file).digest == bare.digest
    with pytest.raises(InputError, match="no labels"):
        bare.check_labels(10)
