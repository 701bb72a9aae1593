"""Weights that a file stores in parts, for a network that has them whole."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from modcap.checkpoints import checkpoint
from modcap.core.errors import InputError

ARCH = "tests.test_stored_in_parts:plain"
IMAGES = torch.linspace(-1, 1, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6)


def plain(num_classes: int = 4) -> nn.Sequential:
    """A transposed convolution whose first two dimensions are alike, too."""
    up = nn.ConvTranspose2d(5, 5, 3)
    last = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, num_classes)
    return nn.Sequential(nn.Conv2d(3, 5, 3, groups=1), nn.ReLU(), up, *last)


def normed() -> nn.Sequential:
    made = plain()
    old(weight_norm)(made)
    return made


def old(hook: Callable[..., Any], **options: Any) -> Callable[[nn.Sequential], None]:
    def add(model: nn.Sequential) -> None:
        for index in (0, 2, 5):
            with pytest.warns(FutureWarning) if hook is weight_norm else nullcontext():
                hook(model[index], **options)

    return add


def new(hook: Callable[..., Any]) -> Callable[[nn.Sequential], None]:
    def add(model: nn.Sequential) -> None:
        for index in (0, 2, 5):
            hook(model[index])

    return add


def pruned(model: nn.Sequential) -> None:
    prune.l1_unstructured(model[0], "weight", 0.5)  # type: ignore[no-untyped-call]
    prune.ln_structured(model[2], "weight", 0.4, 2, 0)  # type: ignore[no-untyped-call]
    prune.random_unstructured(model[5], "bias", 2)  # type: ignore[no-untyped-call]


FORMS: dict[str, Callable[[nn.Sequential], None]] = {
    "weight norm": old(weight_norm),
    "weight norm of all": old(weight_norm, dim=None),
    "weight norm, parametrized": new(parametrizations.weight_norm),
    "spectral norm": old(spectral_norm),
    "spectral norm, parametrized": new(parametrizations.spectral_norm),
    "pruning": pruned,
}


def trained(add: Callable[[nn.Sequential], None], classes: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    model = plain(classes)
    add(model)
    for parameter in model.parameters():
        parameter.data += 0.1
    for _ in range(5):
        model(IMAGES)  # which improves singular vectors
    return model.eval()


def saved(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save(state, folder / "w.pth")
    return folder / "w.pth"


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("name", FORMS)
def test_weights_are_computed_once(name: str, prefix: str, tmp_path: Path) -> None:
    model = trained(FORMS[name], classes=7)
    state = {prefix + key: tensor for key, tensor in model.state_dict().items()}
    loaded = checkpoint.load(saved(state, tmp_path), ARCH)
    assert isinstance(loaded.model, nn.Module)
    assert loaded.model.state_dict().keys() == plain().state_dict().keys()
    assert torch.allclose(loaded.model(IMAGES), model(IMAGES), atol=1e-6)
    assert f"({name.split(' ')[0]}" in loaded.warnings[0]
    assert "weights were computed of them" in loaded.warnings[0]


def test_a_network_that_has_the_parts_keeps_them(tmp_path: Path) -> None:
    model = trained(old(weight_norm))
    file = saved(model.state_dict(), tmp_path)
    loaded = checkpoint.load(file, "tests.test_stored_in_parts:normed")
    assert isinstance(loaded.model, nn.Module)
    assert not loaded.warnings
    assert loaded.model.state_dict().keys() == model.state_dict().keys()


class Squared(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * weight


class Scaled(Squared):
    """Two parts, which are no norm and direction."""

    def forward(self, size: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        return size * weight

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones(3), weight


@pytest.mark.parametrize("own", [Squared, parametrizations.orthogonal, Scaled])
def test_what_joins_others_is_not_known(own: Any, tmp_path: Path) -> None:
    model = plain()
    if own is parametrizations.orthogonal:
        own(model[5])
    else:
        parametrize.register_parametrization(model[0], "weight", own(), unsafe=True)
    with pytest.raises(InputError, match=r"parametrizations\.weight.*remove_parametrizations"):
        checkpoint.load(saved(model.state_dict(), tmp_path), ARCH)


def test_parts_that_do_not_fit_each_other(tmp_path: Path) -> None:
    state = trained(pruned).state_dict()
    state["0.weight_mask"] = torch.ones(2, 2)
    with pytest.raises(InputError, match="remove_parametrizations"):
        checkpoint.load(saved(state, tmp_path), ARCH)
