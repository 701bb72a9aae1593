"""Images that lie in files: the same bytes, read as they are needed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from modcap.core.serialization import DamagedResult
from modcap.data import arrays, large_array
from modcap.data.image_set import ImageSet
from modcap.jobs.worker_cache import WorkerCache


def image_set(pixels: torch.Tensor) -> ImageSet:
    channels = pixels.shape[1]
    return ImageSet(pixels, torch.arange(len(pixels)), (0.5,) * channels, (0.25,) * channels)


SETS = [
    torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8),
    torch.rand(7, 1, 3, 5),
    torch.rand(4, 3, 5, 5).to(memory_format=torch.channels_last),
    torch.zeros(0, 1, 2, 2, dtype=torch.uint8),
]


@pytest.mark.parametrize("pixels", SETS)
def test_parts_are_what_safetensors_writes(pixels: torch.Tensor) -> None:
    images = image_set(pixels)
    tensors = {"labels": images.labels.contiguous(), "pixels": pixels.contiguous()}
    stated = {"normalization": json.dumps({"mean": images.mean, "std": images.std})}
    assert images.to_bytes() == save(tensors, stated)
    assert images.file_bytes == len(images.to_bytes())


@pytest.mark.parametrize("pixels", SETS[:3])
def test_a_worker_reads_them_out_of_their_file(pixels: torch.Tensor, tmp_path: Path) -> None:
    images = image_set(pixels)
    with (tmp_path / images.digest).open("wb") as file:
        images.write(file)
    found = WorkerCache(lambda digest: tmp_path / digest).images(images.digest)
    assert found.lies_in_a_file
    assert found.digest == images.digest
    assert torch.equal(found.normalized(), images.normalized())


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "images"
    for data in (b"", b"\xff" * 40, image_set(SETS[0]).to_bytes()[:-9]):
        file.write_bytes(data)
        with pytest.raises(DamagedResult):
            ImageSet.from_file(file)


@pytest.mark.parametrize("packed", [False, True])
def test_large_arrays_lie_in_files(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.RandomState(0).randint(0, 256, (50, 3, 8, 8)).astype(np.uint8)
    file = tmp_path / "images.npz"
    (np.savez_compressed if packed else np.savez)(file, images=images, labels=np.arange(50))
    monkeypatch.setattr(large_array, "IN_MEMORY", 1000)
    monkeypatch.setattr(large_array, "_CHUNK", 500)
    found, _ = arrays.read(file)
    taken = large_array.taken(found, np.array([7, 3, 49, 7]))
    assert isinstance(found, np.memmap)
    assert np.array_equal(found, images)
    assert np.array_equal(taken, images[[7, 3, 49, 7]])
