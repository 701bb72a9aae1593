"""State dicts under other names than the network's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from modcap.checkpoints import _torchvision, architecture, checkpoint
from modcap.core.errors import InputError

ARCH = "torchvision:squeezenet1_1"
State = dict[str, Tensor]


def state() -> State:
    torch.manual_seed(0)
    return dict(_torchvision.models().squeezenet1_1(weights=None).state_dict())


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda own: {f"{prefix}{name}": tensor for name, tensor in own.items()}


FORMS: dict[str, Callable[[State], State]] = {
    "lightning": prefixed("model."),
    "nested": prefixed("net.module."),
    "with a loss": lambda own: prefixed("model.")(own) | {"criterion.weight": torch.ones(3)},
}


@pytest.mark.parametrize("name", FORMS)
def test_a_prefix_is_taken_off(name: str, tmp_path: Path) -> None:
    own = state()
    torch.save(FORMS[name](own), tmp_path / "model.pth")
    model = checkpoint.load(tmp_path / "model.pth", ARCH).model
    found = model.state_dict()  # type: ignore[operator,union-attr]
    assert all(torch.equal(found[key], tensor) for key, tensor in own.items())


@pytest.mark.parametrize("prefix", ["model.", "net.module."])
def test_the_classes_of_a_network_under_a_prefix(prefix: str, tmp_path: Path) -> None:
    own = dict(_torchvision.models().squeezenet1_1(weights=None, num_classes=7).state_dict())
    torch.save(prefixed(prefix)(own), tmp_path / "model.pth")
    model = checkpoint.load(tmp_path / "model.pth", ARCH).model
    found = model.state_dict()  # type: ignore[operator,union-attr]
    assert torch.equal(found["classifier.1.bias"], own["classifier.1.bias"])


def test_auxiliary_classifiers_under_a_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    models = _torchvision.models()
    monkeypatch.setattr(
        models, "get_model", lambda name, **rest: asked.append(rest) or nn.Flatten()
    )
    arch = "torchvision:googlenet?transform_input=true"
    for name in ("model.aux1.fc2.bias", "aux1.fc2.bias", "model.auxiliary.bias", "fc.bias"):
        architecture.build(arch, {name: torch.ones(2)})
    assert [each["aux_logits"] for each in asked] == [True, True, False, False]


def test_averaged_weights_of_another_form_are_said(tmp_path: Path) -> None:
    averaged = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in state().items()}
    torch.save(prefixed("model.")(state()) | averaged, tmp_path / "model.pth")
    (doubt,) = checkpoint.load(tmp_path / "model.pth", ARCH).warnings
    assert "holds averaged weights under other names (model_ema.features0weight" in doubt
    assert not checkpoint.load(tmp_path / "model.pth", f"{ARCH}?weights=raw").warnings


def test_two_networks_in_one_file_are_not_told_apart(tmp_path: Path) -> None:
    own = state()
    torch.save(prefixed("student.")(own) | prefixed("teacher.")(own), tmp_path / "model.pth")
    with pytest.raises(InputError, match="does not fit --arch"):
        checkpoint.load(tmp_path / "model.pth", ARCH)


def test_a_prefix_that_does_not_help_is_named(tmp_path: Path) -> None:
    torch.save({"body.neck.weight": torch.ones(2, 2)}, tmp_path / "model.pth")
    with pytest.raises(InputError, match=r"all its names begin with 'body\.neck\.'"):
        checkpoint.load(tmp_path / "model.pth", ARCH)


@pytest.mark.parametrize(
    ("arch", "old", "new"),
    [
        ("densenet121", (".norm1.", ".conv2."), (".norm.1.", ".conv.2.")),
        ("vit_b_32", ("mlp.0.", "mlp.3."), ("mlp.linear_1.", "mlp.linear_2.")),
    ],
)
def test_old_names_of_torchvision(arch: str, old: tuple[str, str], new: tuple[str, str]) -> None:
    from modcap.checkpoints.key_names import as_expected

    with torch.device("meta"):
        own = dict(getattr(_torchvision.models(), arch)(weights=None).state_dict())
    renamed = {}
    for key, tensor in own.items():
        name = key
        for now, before in zip(old, new, strict=True):
            if "denselayer" in key or "encoder_layer" in key:
                name = name.replace(now, before)
        renamed[name] = tensor
    assert renamed.keys() != own.keys()
    assert as_expected(renamed, own.keys()).entries.keys() == own.keys()
