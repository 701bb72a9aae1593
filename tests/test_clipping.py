"""What evaluation measures beside top-1: hits of each class, predictions, and what is clipped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modcap.data.image_set import ImageSet
from modcap.jobs.kinds.evaluate import _of_classes
from modcap.quantization.clipping import watching_activations
from modcap.quantization.layers import ActivationQuantizer


def test_a_quantizer_tells_what_it_saw_and_clipped() -> None:
    module = nn.Sequential(ActivationQuantizer(2))
    module[0].set(torch.tensor(0.5), torch.tensor(1.0))  # levels -0.5, 0, 0.5, 1
    x = torch.tensor([-0.76, -0.74, 0.0, 1.24, 1.26, 3.0])
    with torch.no_grad(), watching_activations([nn.Identity(), module]) as seen:
        module(x[:3])
        module(x[3:])
    module(x)  # nobody counts any more
    assert list(seen) == ["1.0"]
    meta = seen["1.0"].meta
    assert meta == {
        "low": pytest.approx(-0.76),
        "high": 3.0,
        "clipped": pytest.approx(3 / 6),
    }


def test_hits_of_classes_add_up_to_top1() -> None:
    labels = torch.tensor([0, 0, 1, 3, 3, 3])
    answers = torch.tensor([0, 1, 1, 3, 3, 0])
    pixels = answers[:, None, None, None].float()
    images = ImageSet(pixels, labels, (0.0,), (1.0,))

    def network(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(x.flatten().long(), 5).float()

    found = _of_classes(network, images, "cpu")
    assert found.meta["class_images"] == [2, 1, 0, 3]
    assert found.meta["class_hits"] == [1, 1, 0, 2]
    assert found.meta["top1"] == 100 * 4 / 6
    assert torch.equal(found.tensors["predictions"].long(), answers)
