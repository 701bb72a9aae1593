"""Files and archives that are not what they should be end in one line that says what to do; and
what the page of messages quotes is what the code says."""

from __future__ import annotations

import ast
import gzip
import io
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.export import Dim

from modcap.checkpoints import checkpoint
from modcap.core.errors import InputError
from modcap.data import npz
from modcap.graph.network import build
from tests.rooms import ROOT, sources

SIDE = 12


class Extra(nn.Conv2d):
    state: Any = 1

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(self.features(x).mean((2, 3))))
        return logits


class Viewed(Small):
    """Of which export writes down the number of images."""

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.adaptive_avg_pool2d(self.features(x), 1).view(x.shape[0], -1)
        logits: Tensor = self.head(y)
        return logits


class ChannelsLast(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2))


def small() -> nn.Module:
    return Small()


def with_extra() -> nn.Module:
    model = Small()
    model.features[2] = Extra(4, 4, 3)
    return model


ARCH = f"{__name__}:small"
State = dict[str, Any]


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def state() -> State:
    torch.manual_seed(0)
    return dict(Small().state_dict())


def torchscript() -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = io.BytesIO()
        torch.jit.save(torch.jit.trace(Small().eval(), torch.zeros(1, 3, SIDE, SIDE)), file)
    return file.getvalue()


def archive(
    model: nn.Module, count: int, shape: tuple[int, ...] = (3, SIDE, SIDE), free: bool = True
) -> bytes:
    file = io.BytesIO()
    sizes = ({0: Dim("batch")},) if free else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (torch.randn(count, *shape),), dynamic_shapes=sizes)
        torch.export.save(program, file)
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as whole:
        whole.writestr("weights.pth", b"1")
    return file.getvalue()


KINDS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "torchscript": ("m.pt", torchscript, "is TorchScript: give the state dict of the nn.Module"),
    "torchscript as pt2": ("m.pt2", torchscript, "is TorchScript"),
    "weights as pt2": ("m.pt2", lambda: saved(state()), "is weights of torch.save: call it NAME"),
    "archive as pth": ("m.pth", lambda: archive(Small().eval(), 2), "is an archive of export"),
    "safetensors as pth": ("m.pth", lambda: safetensors.torch.save(state()), "is safetensors"),
    "weights as safetensors": ("m.safetensors", lambda: saved(state()), "is weights of torch"),
    "pointer": ("m.pth", lambda: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "page": ("m.pth", lambda: b"<!DOCTYPE html><html></html>", "is a web page"),
    "gzip": ("m.pth", lambda: gzip.compress(b"1"), "is compressed: decompress it first"),
    "zip": ("m.pth", zipped, "is a zip of other files"),
    "onnx": ("m.pth", lambda: b"\x08\x07\x12\x07pytorch\x1a", "is ONNX"),
    "noise": ("m.pth", lambda: b"\xf0\x01\x02", "it is nothing that torch.save writes"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_another_kind_is_named(name: str, tmp_path: Path) -> None:
    file, make, message = KINDS[name]
    (tmp_path / file).write_bytes(make())
    arch = None if file.endswith(".pt2") else ARCH
    with pytest.raises(InputError, match=message):
        checkpoint.load(tmp_path / file, arch)


def prefixed(prefix: str, own: State) -> State:
    return {f"{prefix}{name}": value for name, value in own.items()}


def inside(wrapper: str) -> Callable[[State], State]:
    return lambda own: {n.replace("features.", f"features.{wrapper}."): v for n, v in own.items()}


FORMS: dict[str, Callable[[State], Any]] = {
    "parallel inside": inside("module"),
    "compiled inside": inside("_orig_mod"),
    "sharded inside": inside("_fsdp_wrapped_module"),
    "recomputed inside": inside("_checkpoint_wrapped_module"),
    "lightning, compiled": lambda own: {"state_dict": prefixed("model._orig_mod.", own)},
    "a name of its own": lambda own: {"net": own, "epoch": 3, "optimizer": {"state": {}}},
    "wrapped twice": lambda own: {"checkpoint": {"model": own}, "epoch": 3},
    "averaged": lambda own: prefixed("module.", own) | {"n_averaged": torch.tensor(2)},
}


@pytest.mark.parametrize("form", FORMS)
def test_what_training_wraps_around_weights_is_taken_off(form: str, tmp_path: Path) -> None:
    own = state()
    (tmp_path / "m.pth").write_bytes(saved(FORMS[form](own)))
    found = checkpoint.load(tmp_path / "m.pth", ARCH).model.state_dict()  # type: ignore[operator,union-attr]
    assert all(torch.equal(found[name], own[name]) for name in own)


@pytest.mark.parametrize(("raw", "mean"), [("model.", "ema_model.module."), ("", "ema.")])
def test_averaged_weights_beside_raw_ones_are_chosen(raw: str, mean: str, tmp_path: Path) -> None:
    own = state()
    other = {name: value + 1 for name, value in own.items()}
    (tmp_path / "m.pth").write_bytes(saved(prefixed(raw, own) | prefixed(mean, other)))
    for kind, expected in (("", own), ("?weights=raw", own), ("?weights=ema", other)):
        read = checkpoint.load(tmp_path / "m.pth", ARCH + kind)
        found = read.model.state_dict()  # type: ignore[operator,union-attr]
        assert torch.equal(found["head.weight"], expected["head.weight"])
        assert bool(read.warnings) == (not kind)
    (tmp_path / "m.pth").write_bytes(saved(own))
    with pytest.raises(InputError, match="holds raw weights only: leave out weights=ema"):
        checkpoint.load(tmp_path / "m.pth", ARCH + "?weights=ema")


def test_several_sets_of_weights_are_named(tmp_path: Path) -> None:
    own = state()
    (tmp_path / "m.pth").write_bytes(saved(prefixed("student.", own) | prefixed("teacher.", own)))
    with pytest.raises(InputError, match=r"more than once, under 'student\.' and 'teacher\.'"):
        checkpoint.load(tmp_path / "m.pth", ARCH)
    (tmp_path / "m.pth").write_bytes(saved({"generator": own, "critic": own}))
    with pytest.raises(InputError, match=r"several sets of weights \(generator, critic\)"):
        checkpoint.load(tmp_path / "m.pth", ARCH)


def test_extra_state_is_kept_and_missed(tmp_path: Path) -> None:
    model, arch = with_extra(), f"{__name__}:with_extra"
    model.features[2].state = {"step": 7}  # type: ignore[index,union-attr]
    (tmp_path / "m.pth").write_bytes(saved(model.state_dict()))
    read = checkpoint.load(tmp_path / "m.pth", arch)
    assert read.model.features[2].state == {"step": 7}  # type: ignore[index,union-attr]
    assert not read.warnings
    (tmp_path / "m.pth").write_bytes(saved(state()))
    (doubt,) = checkpoint.load(tmp_path / "m.pth", arch).warnings
    assert "lacks features.2._extra_state" in doubt


ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "one image": (lambda: archive(Viewed().eval(), 1, free=False), "for 1 images at a time.*Dim"),
    "eight": (lambda: archive(Viewed().eval(), 8, free=False), "for 8 images at a time.*Dim"),
    "two": (lambda: archive(Viewed().eval(), 2, free=False), "for 2 images at a time, and not for"),
    "training": (lambda: archive(Small().train(), 4), r"in training mode.*model\.eval\(\)"),
    "dropout": (
        lambda: archive(nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(432, 5)).train(), 4),
        r"in training mode \(aten.dropout",
    ),
    "channels last": (
        lambda: archive(ChannelsLast().eval(), 4, (SIDE, SIDE, 3)),
        "images of 12 × 12 × 3, with channels last",
    ),
    "another size": (
        lambda: archive(Small().eval(), 4, (3, 16, 16)),
        r"images of 3 × 16 × 16 \(channels × height × width\), and these are 3 × 12 × 12",
    ),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_for_something_else_says_for_what(name: str, tmp_path: Path) -> None:
    make, message = ARCHIVES[name]
    (tmp_path / "m.pt2").write_bytes(make())
    with pytest.raises(InputError, match=message):
        checkpoint.check_input(checkpoint.load(tmp_path / "m.pt2"), torch.randn(2, 3, SIDE, SIDE))


@pytest.mark.parametrize("count", [1, 8])
def test_an_archive_of_one_batch_that_takes_any_is_taken(count: int, tmp_path: Path) -> None:
    model, images = Small().eval(), torch.randn(4, 3, SIDE, SIDE)
    (tmp_path / "m.pt2").write_bytes(archive(model, count, free=False))
    read = checkpoint.load(tmp_path / "m.pt2")
    assert checkpoint.check_input(read, images[:2]) == 5
    with torch.no_grad():
        assert torch.allclose(build(read.model, images[:2])(images), model(images), atol=1e-5)


class Filled(Small):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        y[:] = x
        z = torch.empty(x.shape)
        z[:] = y
        return super().forward(z)


class Moved(Small):
    def forward(self, x: Tensor) -> Tensor:
        mask = (x > 0).to(device=x.device, dtype=torch.float32)
        return super().forward(x * mask)


class Taken(Small):
    """Layers under names of what graphs keep in themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.meta, self._code = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self._code(self.meta(x)))


class HalfExtra(Small):
    def __init__(self) -> None:
        super().__init__()
        self.features[2] = Extra(4, 4, 3)
        self.features[2].state = torch.ones(2).half()  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [Filled, Moved, Taken, HalfExtra])
def test_it_is_captured(kind: type[nn.Module]) -> None:
    model, images = kind().eval(), torch.randn(4, 3, SIDE, SIDE)
    with torch.no_grad():
        assert torch.allclose(build(model, images[:2])(images), model(images), atol=1e-5)


class Drawn(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn_like(x))


def test_an_operator_is_named_without_an_address() -> None:
    with pytest.raises(InputError, match=r"^operator <built-in method randn_like> at node"):
        build(Drawn().eval(), torch.randn(2, 3, SIDE, SIDE))


def test_arrays_with_channels_last(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 28, 28, 3), np.uint8), np.zeros(4, np.int64)
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    with pytest.raises(InputError, match=r"channels last: save images.transpose\(0, 3, 1, 2\)"):
        npz.read_all(tmp_path / "x.npz", "x")


def raised() -> set[str]:
    """The texts of errors that a user can meet, a placeholder as a line break."""
    calls = (
        node
        for _, file in sources()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and node.args
    )
    named = (c for c in calls if getattr(c.func, "id", "") in ("InputError", "Unavailable"))
    texts = {_text(call.args[0]) for call in named}
    return {text for text in texts if len(re.findall("[a-z]{3,}", text)) > 1}


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    return str(node.value) if isinstance(node, ast.Constant) else "\n"


def said() -> str:
    """All text in the code, a placeholder as a line break."""
    nodes = (n for _, file in sources() for n in ast.walk(ast.parse(file.read_text())))
    return "\n".join(_text(n) for n in nodes if isinstance(n, ast.JoinedStr | ast.Constant))


def quoted() -> list[str]:
    """What the page quotes; a placeholder is a line break, as in the code."""
    page = (ROOT / "docs/troubleshooting.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith('| "')]
    quotes = [quote for row in rows for quote in re.findall(r'"([^"]+)"', row)]
    return [quote.replace("…", "\n") for quote in quotes]


def test_the_page_of_messages_quotes_what_is_said() -> None:
    text = said()
    assert len(quoted()) > 60
    assert [quote for quote in quoted() if quote not in text] == []


def test_the_page_of_messages_has_every_one() -> None:
    quotes = quoted()
    assert [t for t in raised() if not any(quote in t for quote in quotes)] == []


def test_the_page_of_mistakes_quotes_what_is_said() -> None:
    page = (ROOT / "docs/howto/mistakes.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 20
    text = said()
    for row in rows:
        quotes = re.findall(r'"([^"]+)"', row[1])
        assert quotes, row
        assert [q for q in quotes if q.replace("…", "\n").strip() not in text] == [], row
