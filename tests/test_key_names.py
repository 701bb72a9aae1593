"""State dicts under other names than the network's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from modcap.checkpoints import _torchvision, checkpoint
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
