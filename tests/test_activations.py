"""Activations in files, and those that a worker keeps."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from modcap.core.errors import ModcapError
from modcap.graph.forward import concatenate_to
from modcap.jobs.activation_cache import Activations


@pytest.mark.parametrize("shape", [(3, 4, 5), (7,), (1, 2, 2), ()])
@pytest.mark.parametrize("limit", [None, 0])
def test_gather_gives_all_parts_in_order(
    shape: tuple[int, ...], limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    x = torch.randn(10, *shape)
    whole = concatenate_to(iter(x.split(4)), 10, limit)
    assert torch.equal(whole, x)
    assert not list(tmp_path.iterdir())  # the file lives as long as the tensor, without a name
    if len(shape) == 3:
        assert whole.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("limit", [None, 0])
def test_parts_may_lie_in_memory_as_they_like(limit: int | None) -> None:
    x = torch.randn(10, 6, 5)
    turned = [part.transpose(0, 1).contiguous().transpose(0, 1) for part in x.split(4)]
    assert torch.equal(concatenate_to(turned, 10, limit), x)
    assert torch.equal(concatenate_to((part[:, 0] for part in x.split(4)), 10, limit), x[:, 0])
    image = torch.randn(10, 1, 4, 4)
    cropped = [part[:, :, :2, :2].expand(-1, 3, -1, -1) for part in image.split(4)]
    assert torch.equal(
        concatenate_to(cropped, 10, limit), image[:, :, :2, :2].expand(-1, 3, -1, -1)
    )


def test_activations_in_a_file_are_mapped_not_read(tmp_path: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc here")
    kept = concatenate_to(iter(torch.zeros(4, 1000).split(2)), 4, 15_999)
    assert "modcap-activations-" in maps.read_text()
    del kept
    assert "modcap-activations-" not in maps.read_text()


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(ModcapError, match=r"no room for .* TMPDIR"):
        concatenate_to(iter([torch.zeros(2, 3)]), 2, 0)


def test_the_oldest_activations_go_first() -> None:
    kept = Activations(limit=3 * 4 * 10)
    for key in "abc":
        kept.put(key, torch.zeros(10))
    assert kept.get("a") is not None  # used last, so "b" is the oldest
    kept.put("d", torch.zeros(10))
    assert [kept.get(key) is None for key in "abcd"] == [False, True, False, False]
    kept.put("large", torch.zeros(31))
    assert kept.get("large") is None
    kept.put("d", torch.zeros(10), bound=40)
    assert [kept.get(key) is None for key in "acd"] == [True, True, False]
