"""The dimension over which a reconstruction loss is summed is that of the channels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from modcap.checkpoints import _torchvision
from modcap.graph.channels import channel_dimension
from tests.networks import cut
from tests.test_unusual_networks import ClassToken, trained


class Blocks(nn.Module):
    """A convolution, then ``then``, and a linear layer where channels are last."""

    def __init__(self, then: Callable[[Tensor], Tensor], mixes: bool) -> None:
        super().__init__()
        self.first, self.mix, self.then, self.mixes = (
            nn.Conv2d(3, 8, 3),
            nn.Linear(8, 8),
            then,
            mixes,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.then(self.first(x)).relu()
        return x + self.mix(x) if self.mixes else x


FORMS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "images": (lambda x: x, 1),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), 3),
    "tokens": (lambda x: x.flatten(2).transpose(1, 2), 2),
    "rows of pixels": (lambda x: x.flatten(2), 1),
    "vectors": (lambda x: x.mean((2, 3)), 1),
}
MOVED: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "permute by name": (lambda x: x.permute(dims=(0, 2, 3, 1)), 3),
    "permute all by name": (lambda x: torch.permute(input=x, dims=[0, -2, -1, -3]), 3),
    "transpose by name": (lambda x: x.flatten(2).transpose(dim0=1, dim1=2), 2),
    "movedim": (lambda x: x.movedim(1, -1), 3),
    "moveaxis of several": (lambda x: torch.moveaxis(x, (1, 2), (3, 1)), 3),
    "mT": (lambda x: x.flatten(2).mT, 2),
    "adjoint": (lambda x: x.flatten(2).adjoint(), 2),
    "einsum": (lambda x: torch.einsum("nchw->nhwc", x), 3),
    "einsum with a matrix": (lambda x: torch.einsum("nchw,cd->nhwd", x, torch.eye(8)), 3),
    "chunk": (lambda x: x.permute(0, 2, 3, 1).chunk(2, -1)[0], 3),
    "split": (lambda x: x.permute(0, 2, 3, 1).split(5, 1)[1], 3),
    "rows of tokens": (lambda x: x.movedim(1, -1)[:, 0], 2),
    "windows": (lambda x: x.movedim(1, -1).unflatten(1, (2, 5)).transpose(2, 3).flatten(1, 2), 3),
    "groups of channels": (lambda x: x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2), 1),
    "positions": (lambda x: x.flatten(2).mT + torch.linspace(0, 9, 100)[:, None], 2),
    "masks": (lambda x: x.movedim(1, -1) * (x != 0).movedim(1, -1), 3),
    "truth values": (lambda x: (x.movedim(1, -1) > 0.3).float(), 3),
    "largest": (lambda x: x.movedim(1, -1).max(1)[0], 2),
    "order": (lambda x: x.movedim(1, -1).sort(1)[0], 3),
    "in place": (lambda x: x.movedim(1, -1).relu_().add_(1), 3),
    "attention": (lambda x: (x.flatten(2).mT @ x.flatten(2)).softmax(2) @ x.flatten(2).mT, 2),
}


@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_it_follows_from_the_operators(name: str, mixes: bool) -> None:
    then, channels = FORMS[name]
    images = torch.randn(2, 3, 12, 12)
    if mixes and name in ("images", "rows of pixels"):  # whose last dimension is another
        return
    graph = fx.symbolic_trace(Blocks(then, mixes).eval())
    assert channel_dimension([graph], images) == channels
    assert channel_dimension([graph, fx.symbolic_trace(nn.ReLU())], images) == channels


@pytest.mark.parametrize("name", MOVED)
def test_however_an_operator_is_written(name: str) -> None:
    then, channels = MOVED[name]
    model = nn.Sequential(Blocks(then, mixes=False), nn.ReLU()).eval()
    images = torch.randn(2, 3, 12, 12)
    for modules in ([fx.symbolic_trace(model)], cut(model, images).modules):
        assert channel_dimension(modules, images) == channels


def test_tokens_and_swin() -> None:
    images = torch.randn(2, 3, 8, 8)
    modules = cut(trained(ClassToken), images).modules
    assert channel_dimension(modules, images) == 1
    swin = small_swin()
    images = torch.randn(2, 3, 64, 64)
    modules = cut(swin, images).modules
    sizes = [module_output(modules[: n + 1], images) for n in range(len(modules))]
    for n, shape in enumerate(sizes):
        if len(shape) == 4:
            place = channel_dimension(modules[: n + 1], images[:1])
            assert shape[place] == max(shape[1:])
    stages = swin.get_submodule("features")
    for stage in range(1, len(stages) + 1):  # type: ignore[arg-type]
        graph = fx.symbolic_trace(stages[:stage])  # type: ignore[index,operator]
        assert channel_dimension([graph], images[:1]) == 3


def small_swin() -> nn.Module:
    """All kinds of blocks that swin_t has: shifted windows and not, and merging of patches."""
    models = _torchvision.models()
    blocks = {"window_size": [4, 4], "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 3]}
    made: nn.Module = models.SwinTransformer(patch_size=[4, 4], num_classes=5, **blocks)
    return made.eval()


def module_output(modules: tuple[nn.Module, ...], x: Tensor) -> torch.Size:
    with torch.no_grad():
        for module in modules:
            x = module(x)
    return x.shape
