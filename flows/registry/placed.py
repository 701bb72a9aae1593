"""Networks on the device that measures them, as functions of images in the memory of the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from modcap.core.errors import InputError
from modcap.graph.devices import move
from modcap.graph.network import Network
from modcap.jobs.reproducible import reproducible
from modcap.recipe import Device

__all__ = ["device_here", "placed"]


def device_here(asked: Device) -> str:
    """cpu or cuda, for work in this process.

    Raises:
        InputError: a GPU is asked for, and there is none.
    """
    there = torch.cuda.is_available()
    if asked is Device.CUDA and not there:
        raise InputError(
            "--device cuda: torch finds no GPU here: leave it out, or take a machine with a GPU "
            "and a CUDA build of torch"
        )
    return "cuda" if there and asked is not Device.CPU else "cpu"


def placed(model: Callable[[Tensor], Any], device: str) -> Callable[[Tensor], Any]:
    """``model`` on ``device``: it takes images from the host, and what it returns comes back there.

    What is no network of torch's, such as an ONNX file, stays on the CPU.
    """
    if device == "cpu" or not isinstance(model, nn.Module | Network):
        return model
    place = torch.device(device)
    moved = model.to(place) if isinstance(model, Network) else move(model, place)

    def run(images: Tensor) -> Any:
        with reproducible(device):
            return tree_map_only(Tensor, Tensor.cpu, moved(images.to(place)))

    return run
