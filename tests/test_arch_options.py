"""What weights do not tell is said as an option, or asked for; nothing else can be said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from modcap import zoo
from modcap.checkpoints import _torchvision, arch_options, checkpoint
from modcap.checkpoints.published_preprocess import published_preprocess
from modcap.core.errors import InputError

ARCH = "modcap.zoo:vgg_tiny"


class Scaled(nn.Module):
    """The same weights fit every scale."""

    def __init__(self, scale: float, flip: bool) -> None:
        super().__init__()
        self.layer, self.scale, self.flip = nn.Linear(4, 3), scale, flip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1) * self.scale
        return self.layer(-x if self.flip else x)


def scaled(scale: float = 1.0, flip: bool = False) -> nn.Module:
    return Scaled(scale, flip)


@pytest.mark.parametrize("transform", [True, False])
def test_the_form_of_googlenet_is_asked_for(tmp_path: Path, transform: bool) -> None:
    build = _torchvision.models().get_model
    options: dict[str, Any] = {"init_weights": False, "aux_logits": False}
    built = build("googlenet", num_classes=7, transform_input=transform, **options).eval()
    torch.save(built.state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"googlenet\?transform_input=true or =false"):
        checkpoint.load(tmp_path / "w.pth", "torchvision:googlenet")
    arch = f"torchvision:googlenet?transform_input={str(transform).lower()}"
    found = checkpoint.load(tmp_path / "w.pth", arch)
    x = torch.randn(2, 3, 64, 64)
    assert isinstance(found.model, nn.Module)
    assert torch.equal(found.model(x), built(x))
    assert found.architecture == arch
    assert published_preprocess(arch) == published_preprocess("torchvision:googlenet")


def test_options_of_a_factory(tmp_path: Path) -> None:
    torch.save(scaled().state_dict(), tmp_path / "w.pth")
    base = "tests.test_arch_options:scaled"
    one, other = (
        checkpoint.load(tmp_path / "w.pth", f"{base}?{text}")
        for text in ("scale=2.5&flip=true", "flip=TRUE&scale=2.50")
    )
    assert isinstance(one.model, Scaled)
    assert (one.model.scale, one.model.flip) == (2.5, True)
    assert one.architecture == f"{base}?flip=true&scale=2.5"
    assert other.digest == one.digest != checkpoint.load(tmp_path / "w.pth", base).digest


@pytest.mark.parametrize(
    ("arch", "word"),
    [
        ("torchvision:resnet18?weights=DEFAULT", "raw or ema"),
        ("torchvision:resnet18?progress=true", "no option progress"),
        ("torchvision:resnet18?transform_input=1", "of type bool"),
        ("torchvision:mobilenet_v2?width_mult=1e9", "no value"),
        ("torchvision:mobilenet_v2?width_mult=nan", "of type"),
        ("torchvision:vit_b_16?image_size=99999", "no value"),
        ("torchvision:resnet18?image_size=8", "cannot be built"),
        ("timm:resnet18?pretrained=true", "timm"),
        (f"{ARCH}?x=1", "no option x"),
        (f"{ARCH}?num_classes=__import__('os')", "no value"),
        (f"{ARCH}?", "write options"),
        (f"{ARCH}?a", "no value"),
        (f"{ARCH}?num_classes=3&num_classes=4", "write options"),
        (f"{ARCH}?num_classes=", "no value"),
        (f"{ARCH}?num_classes=3", "does not fit"),
    ],
)
def test_options_that_there_are_not(tmp_path: Path, arch: str, word: str) -> None:
    torch.save(zoo.vgg_tiny().state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match=word):
        checkpoint.load(tmp_path / "w.pth", arch)


def test_an_option_cannot_be_more_than_plain() -> None:
    named = arch_options.parse("a:b?x=true&y=3&z=relu6&w=-0.5")
    assert dict(named.options) == {"x": True, "y": 3, "z": "relu6", "w": -0.5}
    for text in ("../x", "/etc/passwd", "s3://x", "a b", "[1]", "x" * 99, "9" * 5000, "1e400"):
        with pytest.raises(InputError, match="no value"):
            arch_options.parse(f"a:b?x={text}")


@pytest.mark.parametrize(
    "wrapper",
    [
        *("state_dict_ema", "ema_state_dict", "model_ema", "ema", "emaModel", "modelEMA"),
        *("EMAModel", "model-ema", "ema0.999", "avg_model", "polyak", "moving_average"),
    ],
)
def test_averaged_weights_beside_raw_ones(tmp_path: Path, wrapper: str) -> None:
    raw, averaged = zoo.vgg_tiny(), torch.optim.swa_utils.AveragedModel(zoo.vgg_tiny())
    file = tmp_path / "w.pth"
    torch.save({"state_dict": raw.state_dict(), wrapper: averaged.state_dict(), "epoch": 1}, file)
    plain = checkpoint.load(file, ARCH)
    assert "raw and averaged" in plain.warnings[0]
    assert f"{ARCH}?weights=ema" in plain.warnings[0]
    chosen = {kind: checkpoint.load(file, f"{ARCH}?weights={kind}") for kind in ("raw", "ema")}
    assert not any(found.warnings for found in chosen.values())
    assert chosen["raw"].digest == plain.digest
    for kind, model in (("raw", raw), ("ema", averaged.module)):
        torch.save(model.state_dict(), tmp_path / "alone.pth")
        assert chosen[kind].digest == checkpoint.load(tmp_path / "alone.pth", ARCH).digest
        assert chosen[kind].architecture == ARCH


def test_averaged_weights_under_a_key_of_their_own(tmp_path: Path) -> None:
    raw, averaged, file = zoo.vgg_tiny(), zoo.vgg_tiny().state_dict(), tmp_path / "w.pth"
    inner = {"module": averaged, "updates": 3}
    torch.save({"model": raw.state_dict(), "ema": inner, "optimizer": {"state": {}}}, file)
    assert "raw and averaged" in checkpoint.load(file, ARCH).warnings[0]
    chosen = checkpoint.load(file, f"{ARCH}?weights=ema").digest
    torch.save(averaged, file)
    assert chosen == checkpoint.load(file, ARCH).digest


def test_averaged_weights_under_a_prefix_alone(tmp_path: Path) -> None:
    own, file = zoo.vgg_tiny().state_dict(), tmp_path / "w.pth"
    torch.save({f"ema_model.{name}": tensor for name, tensor in own.items()}, file)
    found = [checkpoint.load(file, arch) for arch in (ARCH, f"{ARCH}?weights=ema")]
    torch.save(own, tmp_path / "own.pth")
    assert {each.digest for each in found} == {checkpoint.load(tmp_path / "own.pth", ARCH).digest}
    with pytest.raises(InputError, match="holds ema weights only: leave out weights=raw"):
        checkpoint.load(file, f"{ARCH}?weights=raw")
    raw = {f"model.{name}": tensor for name, tensor in own.items()}
    torch.save(raw | {"ema.rate": torch.ones(1)}, file)
    with pytest.raises(InputError, match="holds raw weights only: leave out weights=ema"):
        checkpoint.load(file, f"{ARCH}?weights=ema")


def test_averaged_weights_without_names(tmp_path: Path) -> None:
    raw, file = zoo.vgg_tiny().state_dict(), tmp_path / "w.pth"
    torch.save({"model": raw, "ema": {"decay": 0.9, "shadow": list(raw.values())}}, file)
    assert "without their names (ema)" in checkpoint.load(file, ARCH).warnings[0]
    assert not checkpoint.load(file, f"{ARCH}?weights=raw").warnings
    with pytest.raises(InputError, match="copy them into the model"):
        checkpoint.load(file, f"{ARCH}?weights=ema")


def test_several_sets_of_the_same_names(tmp_path: Path) -> None:
    raw, other, file = zoo.vgg_tiny().state_dict(), zoo.vgg_tiny().state_dict(), tmp_path / "w.pth"
    loss = {"weight": torch.ones(3)}
    torch.save({"model": raw, "teacher": {"state_dict": other}, "criterion": loss}, file)
    (doubt,) = checkpoint.load(file, ARCH).warnings
    assert "holds other weights of the same names (teacher), which are not taken" in doubt
    torch.save({"model": raw, "criterion": loss, "epoch": 1}, file)
    assert not checkpoint.load(file, ARCH).warnings
    for sets in ({"ema_1": raw, "ema_2": other}, {"a": raw, "b": other}):
        torch.save(sets, file)
        with pytest.raises(InputError, match="several sets of weights"):
            checkpoint.load(file, ARCH)
    torch.save({"ema": raw, "ema_buffers": loss, "model": other}, file)
    assert not checkpoint.load(file, f"{ARCH}?weights=ema").warnings


def test_weights_of_one_kind_only(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save({"model_ema": zoo.vgg_tiny().state_dict(), "epoch": 1}, file)
    assert not checkpoint.load(file, ARCH).warnings
    assert not checkpoint.load(file, f"{ARCH}?weights=ema").warnings
    with pytest.raises(InputError, match="holds ema weights only"):
        checkpoint.load(file, f"{ARCH}?weights=raw")
    torch.save(zoo.vgg_tiny().state_dict(), file)
    with pytest.raises(InputError, match="holds raw weights only"):
        checkpoint.load(file, f"{ARCH}?weights=ema")
