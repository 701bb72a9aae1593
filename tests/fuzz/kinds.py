"""The kinds of files that modcap reads: a good one, how it is changed, and what reads it."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

from modcap.api import quantize
from modcap.checkpoints import checkpoint
from modcap.core.messages import parse
from modcap.data import sources as data
from modcap.data.preprocess import Preprocess
from modcap.export import artifact
from modcap.flows.requests.documents import read_mapping
from modcap.flows.requests.scan_policy import Manifest, read_policy
from modcap.graph import network
from modcap.recipe import CapacityKind, Recipe
from tests.fuzz import bombs, mutations

__all__ = ["KINDS", "Kind", "tiny"]

ARCH = "tests.fuzz.kinds:tiny"
GRAY = Preprocess(resize=16, crop=12, mean=(0.5,), std=(0.25,))


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        share: how often it is drawn, beside the others.
    """

    name: str
    make: Callable[[], bytes]
    change: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], object]
    share: float = 1.0


def tiny(num_classes: int = 4) -> nn.Module:
    """A classifier of 12 × 12 pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(400, num_classes)
    )


def _weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(tiny().state_dict())


def _saved(legacy: bool) -> bytes:
    buffer = io.BytesIO()
    content = {"state_dict": _weights(), "epoch": 3}
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def _pt2() -> bytes:
    batch = torch.export.Dim("batch", min=1, max=64)
    example = (torch.zeros(2, 1, 12, 12),)
    program = torch.export.export(tiny().eval(), example, dynamic_shapes=({0: batch},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _network() -> network.Network:
    torch.manual_seed(0)
    return network.build(tiny().eval(), torch.randn(2, 1, 12, 12), {"checkpoint": "x"})


def _artifact() -> bytes:
    torch.manual_seed(0)
    recipe = Recipe(method="rtn", capacity=CapacityKind.NONE, k=0)
    return quantize(tiny().eval(), torch.randn(16, 1, 12, 12), recipe).artifact


def _npz() -> bytes:
    buffer = io.BytesIO()
    images = np.arange(40 * 144, dtype=np.uint8).reshape(40, 1, 12, 12)
    np.savez(buffer, images=images, labels=np.arange(40) % 4)
    return buffer.getvalue()


def _image(kind: str, **options: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        pixels = np.arange(20 * 18 * 3, dtype=np.uint8).reshape(20, 18, 3)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, **options)
        return buffer.getvalue()

    return make


def _read_npz(path: Path) -> object:
    return data.load(str(path), split="all", preprocess=Preprocess(mean=(0.5,), std=(0.25,)))


def _read_image(path: Path) -> object:
    """As the one image of a class."""
    return data.load(str(path.parent.parent), split="all", preprocess=GRAY)


def _text(value: object) -> Callable[[], bytes]:
    return lambda: json.dumps(value).encode()


_RECIPE = {
    "w_bits": 2,
    "a_bits": 4,
    "method": "qdrop",
    "selection": "explicit",
    "groups": [["a", "b"], ["c", "d"]],
    "optimiser": {"iterations": 10, "scale_rate": 1e-3, "rounding": "soft"},
    "activation_memory": 0.5,
}
_POLICY = {
    "settle_seconds": 1.5,
    "rules": [
        {
            "match": "a/*.pth",
            "arch": "torchvision:resnet18",
            "data": "d.npz",
            "recipes": [{"preset": "quick", "name": "x", "fields": {"w_bits": 4, "k": 2}}],
        }
    ],
}
_MANIFEST = {"arch": "timm:x", "data": "d.npz", "name": "m", "sha256": "0" * 64, "bytes": 12}
_PREPROCESS = {"resize": 16, "crop": 12, "mean": [0.5], "std": [0.25], "interpolation": "nearest"}


def _kinds() -> tuple[Kind, ...]:
    weights = mutations.archive
    texts = mutations.document
    pictures = (
        Kind(f"image.{suffix}", _image(kind), mutations.noise, _read_image, 0.5)
        for suffix, kind in (
            *(("jpg", "JPEG"), ("tif", "TIFF"), ("bmp", "BMP")),
            *(("webp", "WEBP"), ("ppm", "PPM")),
        )
    )
    return (
        Kind("artifact.safetensors", _artifact, mutations.artifact, artifact.load, 2),
        Kind(
            "network.bin",
            lambda: _network().to_bytes(),
            mutations.network,
            lambda path: network.Network.from_bytes(path.read_bytes()),
            2,
        ),
        Kind(
            "weights.safetensors",
            lambda: bytes(save(_weights())),
            mutations.tensors,
            lambda path: checkpoint.load(path, ARCH),
        ),
        Kind(
            "weights.pt", lambda: _saved(False), weights, lambda path: checkpoint.load(path, ARCH)
        ),
        Kind(
            "legacy.pth",
            lambda: _saved(True),
            mutations.noise,
            lambda path: checkpoint.load(path, ARCH),
        ),
        Kind("archive.pt2", _pt2, mutations.archive, checkpoint.load, 0.2),
        Kind("images.npz", _npz, bombs.arrays, _read_npz),
        Kind("image.png", _image("PNG"), bombs.png, _read_image),
        *pictures,
        Kind(
            "recipe.yaml",
            _text(_RECIPE),
            texts,
            lambda path: Recipe.make(read_mapping(path, "recipe")),
        ),
        Kind("policy.yaml", _text(_POLICY), texts, read_policy),
        Kind(
            "manifest.yaml",
            _text(_MANIFEST),
            texts,
            lambda path: parse(Manifest, read_mapping(path, "manifest"), "manifest"),
        ),
        Kind(
            "preprocess.json", _text(_PREPROCESS), texts, lambda path: Preprocess.parse(str(path))
        ),
    )


KINDS = {kind.name: kind for kind in _kinds()}
