"""Checkpoints: the same weights give the same digest, and bad ones give one clear line."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from modcap import zoo
from modcap.checkpoints import _torchvision, checkpoint
from modcap.core.errors import InputError

ARCH = "modcap.zoo:vgg_tiny"


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return zoo.vgg_tiny().eval()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def archive(model: nn.Module) -> bytes:
    batch = torch.export.Dim("batch", min=1, max=4096)
    example = (torch.randn(2, 1, 28, 28),)
    program = torch.export.export(model, example, dynamic_shapes=({0: batch},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def refused(path: Path, *words: str, arch: str | None = ARCH) -> str:
    """The one line with which ``path`` is refused; it names the file and all ``words``."""
    with pytest.raises(InputError) as caught:
        checkpoint.load(path, arch)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 500
    for word in (path.name, *words):
        assert word in line
    return line


def save_as(kind: str, tensors: dict[str, Tensor], folder: Path) -> Path:
    path = folder / f"w.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_file(tensors, path)
        return path
    wrapped: dict[str, Any] = {
        "plain": tensors,
        "state_dict": {"state_dict": tensors, "epoch": 3},
        "model": {"model": tensors, "args": {"lr": 0.1}},
        "model_state_dict": {"model_state_dict": tensors},
        "parallel": {f"module.{name}": t for name, t in tensors.items()},
        "compiled": {f"_orig_mod.module.{name}": t for name, t in tensors.items()},
        "untracked": {n: t for n, t in tensors.items() if "num_batches_tracked" not in n},
    }
    torch.save(wrapped[kind], path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "safetensors",
        "plain",
        "state_dict",
        "model",
        "model_state_dict",
        "parallel",
        "compiled",
        "untracked",
    ],
)
def test_format_and_wrapping_change_neither_weights_nor_digest(
    model: nn.Module, kind: str, tmp_path: Path
) -> None:
    reference = checkpoint.load(save_as("plain", weights(model), tmp_path), ARCH)
    other = tmp_path / "elsewhere"
    other.mkdir()
    found = checkpoint.load(save_as(kind, weights(model), other), ARCH)
    x = torch.randn(2, 1, 28, 28)
    assert isinstance(found.model, nn.Module)
    assert not found.model.training
    assert torch.equal(found.model(x), model(x))
    assert found.digest == reference.digest


def test_digest_depends_on_every_weight_and_on_the_architecture(
    model: nn.Module, tmp_path: Path
) -> None:
    tensors = weights(model)
    first = checkpoint.load(save_as("safetensors", tensors, tmp_path), ARCH).digest
    next(iter(tensors.values())).flatten()[-1] += 1e-3
    assert checkpoint.load(save_as("safetensors", tensors, tmp_path), ARCH).digest != first


def test_loading_leaves_the_random_state_alone(model: nn.Module, tmp_path: Path) -> None:
    path = save_as("safetensors", weights(model), tmp_path)
    state = torch.get_rng_state()
    checkpoint.load(path, ARCH)
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_is_widened(model: nn.Module, tmp_path: Path) -> None:
    tensors = {n: t.half() if t.is_floating_point() else t for n, t in weights(model).items()}
    loaded = checkpoint.load(save_as("safetensors", tensors, tmp_path), ARCH).model
    assert isinstance(loaded, nn.Module)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("squeezenet1_1", {}),
        ("mobilenet_v3_small", {}),
        ("googlenet", {"aux_logits": True, "init_weights": False}),
        ("googlenet", {"aux_logits": False, "init_weights": False}),
    ],
)
def test_torchvision_classes_and_auxiliary_heads_are_read_off_the_weights(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    built = _torchvision.models().get_model(name, weights=None, num_classes=7, **options).eval()
    path = save_as("safetensors", weights(built), tmp_path)
    form = "?transform_input=false" if name == "googlenet" else ""
    found = checkpoint.load(path, f"torchvision:{name}{form}")
    x = torch.randn(2, 3, 64, 64)
    assert isinstance(found.model, nn.Module)
    assert torch.equal(found.model(x), built(x))
    assert checkpoint.check_input(found, x) == 7


def test_archive_computes_what_the_model_does(
    model: nn.Module, archive: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(archive)
    found = checkpoint.load(path)
    assert isinstance(found.model, torch.export.ExportedProgram)
    x = torch.randn(5, 1, 28, 28)
    assert torch.allclose(found.model.module()(x), model(x), atol=1e-6)
    assert checkpoint.check_input(found, x) == 10
    renamed = tmp_path / "n.pt2"
    renamed.write_bytes(archive)
    assert checkpoint.load(renamed).digest == found.digest


# --- nothing in a file is executed


class Canary:
    """Unpickling it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_refused_and_not_run(
    model: nn.Module, tmp_path: Path, legacy: bool
) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "w.pth"
    content = {"state_dict": weights(model), "extra": Canary(sprung)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    refused(path, "never executes", "state_dict()")
    path.write_bytes(pickle.dumps(content["extra"]))
    refused(path)
    assert not sprung.exists()


def test_a_whole_pickled_model_is_refused(model: nn.Module, tmp_path: Path) -> None:
    torch.save(model, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", "state_dict()")


def rewritten(archive: bytes, changes: dict[str, bytes]) -> bytes:
    """``archive`` with the ends of entries' names replaced, or added, by ``changes``."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(out, "w") as new:
        left = dict(changes)
        for entry in old.infolist():
            suffix = next((end for end in changes if entry.filename.endswith(end)), None)
            new.writestr(entry.filename, left.pop(suffix) if suffix else old.read(entry))
        root = old.namelist()[0].split("/")[0]
        for name, data in left.items():
            new.writestr(f"{root}/{name}", data)
    return out.getvalue()


def entry(archive: bytes, end: str) -> str:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        name = next(name for name in opened.namelist() if name.endswith(end))
        return opened.read(name).decode()


GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
INPUTS = "data/sample_inputs/model.pt"


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_rewriting_nothing_keeps_an_archive_loadable(archive: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(rewritten(archive, {}))
    assert checkpoint.load(path).architecture == "pt2"


def test_an_archive_never_runs_what_it_holds(archive: bytes, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    graph = entry(archive, GRAPH)
    config = entry(archive, WEIGHTS)
    symbol = re.search(r"Symbol\('\w+'[^)]*\)", graph)
    assert symbol
    call = f"__import__('os').mkdir('{sprung}')"
    spec = json.dumps(json.loads(graph)["graph_module"]["module_call_graph"][0]["signature"])
    listed = json.loads(spec)["in_spec"]
    enum = json.dumps({"__enum__": True, "fqn": "antigravity:x", "name": "y"})
    evil_tree = listed.replace('"context": "[]"', '"context": ' + json.dumps(enum))
    assert evil_tree != listed
    attacks: dict[str, dict[str, bytes]] = {
        "inputs": {INPUTS: saved((Canary(sprung),))},
        "weight": {
            WEIGHTS: config.replace('"use_pickle": false', '"use_pickle": true', 1).encode(),
            "data/weights/weight_0": saved(Canary(sprung)),
        },
        "object": {"data/constants/opaque_obj_0": pickle.dumps(Canary(sprung))},
        "legacy": {"data/weights/model.pt": saved(Canary(sprung))},
        "library": {"data/aotinductor/model/model.so": b"\x7fELF"},
        "expression": {GRAPH: graph.replace(symbol.group(), call).encode()},
        "operator": {
            GRAPH: graph.replace("torch.ops.aten.relu.default", "torch.os.mkdir").encode()
        },
        "tree": {GRAPH: graph.replace(json.dumps(listed), json.dumps(evil_tree)).encode()},
    }
    for name, changes in attacks.items():
        path = tmp_path / f"{name}.pt2"
        changed = rewritten(archive, changes)
        assert changed != rewritten(archive, {}), name
        path.write_bytes(changed)
        refused(path, "could execute code", arch=None)
    assert not sprung.exists()


def test_guards_of_an_archive_are_dropped(archive: bytes, tmp_path: Path) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "m.pt2"
    graph = json.loads(entry(archive, GRAPH))
    graph["guards_code"] = [f"__import__('os').mkdir('{sprung}') is None"]
    path.write_bytes(rewritten(archive, {GRAPH: json.dumps(graph).encode()}))
    checkpoint.check_input(checkpoint.load(path), torch.randn(2, 1, 28, 28))
    assert not sprung.exists()


# --- one clear line


def test_missing_directory_empty_and_unknown(tmp_path: Path, model: nn.Module) -> None:
    refused(tmp_path / "none.pth", "No such file")
    refused(tmp_path, "directory")
    (tmp_path / "w.pth").touch()
    refused(tmp_path / "w.pth", "empty")
    (tmp_path / "w.onnx").write_bytes(b"x")
    refused(tmp_path / "w.onnx", ".safetensors")
    path = save_as("safetensors", weights(model), tmp_path)
    refused(path, "--arch", arch=None)


@pytest.mark.parametrize("kept", [0.1, 0.9])
@pytest.mark.parametrize("kind", ["safetensors", "plain", "pt2"])
def test_truncated(
    model: nn.Module, archive: bytes, kind: str, kept: float, tmp_path: Path
) -> None:
    path = tmp_path / "w.pt2" if kind == "pt2" else save_as(kind, weights(model), tmp_path)
    data = archive if kind == "pt2" else path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    refused(path, "damaged", arch=None if kind == "pt2" else ARCH)


def test_noise(tmp_path: Path) -> None:
    for suffix in ("pth", "safetensors", "pt2"):
        path = tmp_path / f"w.{suffix}"
        path.write_bytes(bytes(range(256)) * 16)
        refused(path, "damaged", arch=None if suffix == "pt2" else ARCH)


def test_archive_of_another_version(archive: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(rewritten(archive, {"archive_version": b"99"}))
    refused(path, "version", "export it again", arch=None)
    path.write_bytes(archive)
    refused(path, "leave out --arch")


def test_wrong_architecture(model: nn.Module, tmp_path: Path) -> None:
    path = save_as("safetensors", weights(model), tmp_path)
    refused(path, "missing", "more", "unexpected", arch="torchvision:resnet18")
    refused(path, "of another shape", arch="modcap.zoo:regnet_tiny")


@pytest.mark.parametrize(
    ("arch", "word"),
    [
        ("resnet18", "torchvision:NAME"),
        ("torchvision:resnet19", "resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no such classifier"),
        ("modcap.zoo:nothing", "no factory"),
        ("no_such_module:net", "cannot be imported"),
        ("json:dumps", "without arguments"),
        ("builtins:dict", "not a torch.nn.Module"),
    ],
)
def test_unknown_architecture(model: nn.Module, arch: str, word: str, tmp_path: Path) -> None:
    path = save_as("safetensors", weights(model), tmp_path)
    with pytest.raises(InputError, match=re.escape(word)) as caught:
        checkpoint.load(path, arch)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_timm_that_is_not_installed(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pip install timm"):
        checkpoint.load(save_as("safetensors", weights(model), tmp_path), "timm:resnet18")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(model: nn.Module, value: float, tmp_path: Path) -> None:
    tensors = weights(model)
    tensors["0.weight"].view(-1)[3] = value
    refused(save_as("safetensors", tensors, tmp_path), "tensor 0.weight has 1 values")


def test_not_a_state_dict(tmp_path: Path) -> None:
    for content, word in [([1, 2], "list"), ({"lr": 0.1}, "lr"), ({}, "empty")]:
        torch.save(content, tmp_path / "w.pth")
        refused(tmp_path / "w.pth", word)


def test_a_factory_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_network.py").write_text(
        "from torch import nn\ndef small(num_classes=3):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(4, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    trained = nn.Sequential(nn.Flatten(), nn.Linear(4, 5))
    path = save_as("safetensors", weights(trained), tmp_path)
    found = checkpoint.load(path, "my_network:small")
    assert checkpoint.check_input(found, torch.randn(3, 1, 2, 2)) == 5


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 2, 2)])
def test_images_of_another_size(model: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="does not take images of") as caught:
        checkpoint.check_input(model, torch.randn(shape))
    assert "\n" not in str(caught.value)


def test_networks_that_are_no_classifiers() -> None:
    images = torch.randn(2, 1, 8, 8)
    assert checkpoint.check_input(nn.Conv2d(1, 4, 3), images) is None
    assert checkpoint.check_input(lambda x: {"a": x, "b": [x.flatten(1)]}, images) is None
    assert checkpoint.check_input(lambda x: {"logits": x.flatten(1)}, images) == 64
    for answer, said in (
        (lambda x: {"a": x, "b": "text"}, "str in output 'b'"),
        (lambda x: x.mean(), r"with \(\)"),
        (lambda x: [], "with nothing"),
        (lambda x: [x, x / 0], "NaN or infinity in output '1'"),
    ):
        with pytest.raises(InputError, match=said):
            checkpoint.check_input(answer, images)
